//! A storage in memory that fails when it is told to, and looks at all that is put into it.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{
    StreamExt,
    future::pending,
    stream::{self, BoxStream},
};
use larder_fs::store::{Backend, Storage};
use larder_layout::Digest;
use object_store::{
    Attributes, CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult,
    MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt, PutMultipartOptions, PutOptions,
    PutPayload, PutResult, Result, UploadPart, memory::InMemory, path::Path as Key,
};

/// What is wrong with one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails, and has done nothing.
    Error,
    /// It fails, but has done what it was to do.
    DoneAndError,
    /// It is never answered, and has done nothing.
    Stall,
    /// The content ends early, as if this were all of it.
    Short,
    /// The content stops coming. What moves none is done, and never answered.
    StallInside,
}

/// A storage that all nodes share. Clones are the same storage.
#[derive(Clone, Debug, Default)]
pub struct FaultyStore(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    objects: InMemory,
    plan: Mutex<Plan>,
    /// Uploads that were neither completed nor aborted.
    uploads: AtomicUsize,
}

#[derive(Debug, Default)]
struct Plan {
    /// How many calls are well before the one that is not.
    next: Option<(u32, Fault)>,
    is_down: bool,
    calls: u32,
    /// What was put into the storage and must not be there.
    violations: Vec<String>,
    /// What was found to be damaged is removed before it is published anew, from below its links.
    damaged: Vec<Digest>,
}

impl FaultyStore {
    /// The storage of one node.
    pub fn open(&self, part_bytes: u64) -> Arc<Storage> {
        Arc::new(Storage::new(Backend {
            objects: Arc::new(self.clone()),
            leftovers: None,
            root_directory: String::new(),
            part_bytes,
            attributes: Attributes::new(),
            mistaken_key: |_| None,
            endpoint_key: "",
        }))
    }

    /// Spoils one call, after so many that are well.
    pub fn fail_after(&self, calls: u32, fault: Fault) {
        self.plan().next = Some((calls, fault));
    }

    /// Every call fails from now on, or none does any more.
    pub fn set_down(&self, is_down: bool) {
        let mut plan = self.plan();
        plan.is_down = is_down;
        plan.next = None;
    }

    /// Whether the call that is to fail has not come yet.
    pub fn is_in_wait(&self) -> bool {
        self.plan().next.is_some()
    }

    /// Uploads that were neither completed nor aborted.
    pub fn uploads(&self) -> usize {
        self.0.uploads.load(Ordering::SeqCst)
    }

    /// Flips a bit of a blob where it is stored.
    pub async fn damage(&self, digest: &Digest) {
        let key = key(digest);
        let Ok(found) = self.0.objects.get(&key).await else { return };
        let mut content = found.bytes().await.unwrap().to_vec();
        if let Some(last) = content.last_mut() {
            *last ^= 1;
        }
        self.0.objects.put(&key, content.into()).await.unwrap();
        self.plan().damaged.push(digest.clone());
    }

    /// "3. No partial blob is ever visible under `blobs/`", at no moment; and a link never dangles.
    pub fn assert_sound(&self) {
        let plan = self.plan();
        assert!(plan.violations.is_empty(), "{:?}", plan.violations);
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.0.plan.lock().unwrap()
    }

    /// Counts a call, and tells what is wrong with it.
    async fn call(&self) -> Result<Option<Fault>> {
        // Others get their turn, as they do while a real store answers.
        tokio::task::yield_now().await;
        let fault = {
            let mut plan = self.plan();
            plan.calls += 1;
            let is_down = plan.is_down;
            match &mut plan.next {
                _ if is_down => Some(Fault::Error),
                Some((0, fault)) => {
                    let fault = *fault;
                    plan.next = None;
                    Some(fault)
                }
                Some((calls, _)) => {
                    *calls -= 1;
                    None
                }
                None => None,
            }
        };
        match fault {
            Some(Fault::Error) => Err(error()),
            Some(Fault::Stall) => pending().await,
            fault => Ok(fault),
        }
    }

    /// A call that moves no content out: it is done, or fails, or both.
    async fn change<T>(&self, change: impl Future<Output = Result<T>>) -> Result<T> {
        match self.call().await? {
            None => change.await,
            Some(Fault::DoneAndError) => {
                change.await?;
                Err(error())
            }
            Some(Fault::StallInside) => {
                change.await?;
                pending().await
            }
            Some(_) => Err(error()),
        }
    }

    /// Looks at what was just put.
    async fn inspect(&self, key: &Key) {
        let content = self.0.objects.get(key).await.unwrap().bytes().await.unwrap();
        let violation = match key.filename() {
            Some("data") => {
                let digest = digest_of(key);
                (Digest::of(digest.algorithm(), &content) != digest)
                    .then(|| format!("{} bytes that are not {digest}", content.len()))
            }
            Some("link") => {
                let digest: Digest = std::str::from_utf8(&content).unwrap().parse().unwrap();
                let is_missing = self.0.objects.head(&self::key(&digest)).await.is_err();
                let dangles = is_missing && !self.plan().damaged.contains(&digest);
                dangles.then(|| format!("{key} dangles"))
            }
            _ => Some(format!("{key} is no key of the layout")),
        };
        self.plan().violations.extend(violation);
    }
}

fn error() -> Error {
    Error::Generic { store: "faulty", source: "told to fail".into() }
}

/// Where a blob is stored.
pub fn key(digest: &Digest) -> Key {
    let (algorithm, hex) = (digest.algorithm().as_str(), digest.hex());
    Key::from(format!("docker/registry/v2/blobs/{algorithm}/{}/{hex}/data", &hex[..2]))
}

fn digest_of(key: &Key) -> Digest {
    let parts: Vec<_> = key.parts().collect();
    let [.., algorithm, _, hex, _] = &parts[..] else { panic!("{key} is no key of a blob") };
    Digest::new(algorithm.as_ref().parse().unwrap(), hex.as_ref()).unwrap()
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("faulty store")
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(
        &self,
        key: &Key,
        content: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let put = async {
            let put = self.0.objects.put_opts(key, content, options).await;
            self.inspect(key).await;
            put
        };
        self.change(put).await
    }

    async fn put_multipart_opts(
        &self,
        key: &Key,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let begin = async {
            let parts = self.0.objects.put_multipart_opts(key, options).await?;
            Ok(Box::new(FaultyUpload { parts, store: self.clone(), key: key.clone() }) as _)
        };
        let upload = self.change(begin).await;
        // One that was begun and told as failed is nobody's to abort: the sweep is for it.
        self.0.uploads.fetch_add(usize::from(upload.is_ok()), Ordering::SeqCst);
        upload
    }

    async fn get_opts(&self, key: &Key, options: GetOptions) -> Result<GetResult> {
        let fault = match self.call().await? {
            Some(Fault::DoneAndError) => return Err(error()),
            fault => fault,
        };
        let is_head = options.head;
        let mut found = self.0.objects.get_opts(key, options).await?;
        if is_head || found.range.is_empty() {
            return if fault.is_some() { Err(error()) } else { Ok(found) };
        }
        let (meta, range) = (found.meta.clone(), found.range.clone());
        let content = found.bytes().await?;
        // In two pieces, so that something can happen in between.
        let (first, second) = content.split_at(content.len() / 2);
        let first = stream::iter([Ok(Bytes::copy_from_slice(first))]);
        let second = stream::iter([Ok(Bytes::copy_from_slice(second))]);
        let content = match fault {
            None => first.chain(second).boxed(),
            Some(Fault::StallInside) => first.chain(stream::pending()).boxed(),
            Some(_) => first.boxed(),
        };
        let payload = GetResultPayload::Stream(content);
        let (attributes, extensions) = Default::default();
        found = GetResult { payload, meta, range, attributes, extensions };
        Ok(found)
    }

    fn delete_stream(
        &self,
        keys: BoxStream<'static, Result<Key>>,
    ) -> BoxStream<'static, Result<Key>> {
        let store = self.clone();
        let delete = move |key: Result<Key>| {
            let store = store.clone();
            async move {
                let key = key?;
                store.change(store.0.objects.delete(&key)).await?;
                Ok(key)
            }
        };
        keys.then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (store, prefix) = (self.clone(), prefix.cloned());
        let list = async move {
            let called = store.call().await;
            let outcome = called.and_then(|fault| fault.map_or(Ok(()), |_| Err(error())));
            match outcome {
                Ok(()) => store.0.objects.list(prefix.as_ref()),
                Err(e) => stream::iter([Err(e)]).boxed(),
            }
        };
        stream::once(list).flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> Result<ListResult> {
        self.change(self.0.objects.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<()> {
        self.change(self.0.objects.copy_opts(from, to, options)).await
    }
}

#[derive(Debug)]
struct FaultyUpload {
    parts: Box<dyn MultipartUpload>,
    store: FaultyStore,
    key: Key,
}

#[async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, content: PutPayload) -> UploadPart {
        let (store, part) = (self.store.clone(), self.parts.put_part(content));
        Box::pin(async move { store.change(part).await })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let store = self.store.clone();
        let complete = async {
            let completed = self.parts.complete().await?;
            store.0.uploads.fetch_sub(1, Ordering::SeqCst);
            store.inspect(&self.key).await;
            Ok(completed)
        };
        store.change(complete).await
    }

    async fn abort(&mut self) -> Result<()> {
        let store = self.store.clone();
        let abort = async {
            self.parts.abort().await?;
            store.0.uploads.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        };
        store.change(abort).await
    }
}
