//! Alibaba Cloud OSS as the shared storage: what is peculiar to it.

use futures_util::{StreamExt, TryStreamExt};
use larder_fs::store::Backend;
use larder_tests::{
    Format, Image, Opened, Oss, Sandbox,
    distribution::{assert_served, stored},
    random_bytes, store,
};
use object_store::{Error, ObjectStoreExt, PutMode, PutOptions, path::Path};
use tokio::runtime::{Builder, Runtime};

const LARGE_BYTES: usize = (65 << 20) + 12_345;

fn runtime() -> Runtime {
    // One thread, which is in the sandbox.
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn open(section: &str) -> Backend {
    store::open(&format!("{{oss: {{{section}}}}}")).expect("a store")
}

#[test]
fn a_bucket_of_distribution_is_served() {
    let Some(sandbox) = Sandbox::enter(&[Oss::LIBRARY_NEEDS]) else { return };
    let oss = Oss::start(&sandbox);
    for (more, prefix) in [("", ""), ("rootdirectory: /a/b/", "a/b/")] {
        let image = Image::new(Format::Oci);
        oss.fill(&sandbox, &stored(&image, prefix));
        let section = format!("oss: {{{}, {more}}}", oss.section());
        let opened = Opened::open(&sandbox, &section).expect("a section");
        assert_eq!(opened.check(), Ok(()), "{more}");
        assert_served(&opened, &image);
    }
}

#[test]
fn oss_keeps_what_is_put_and_nothing_else() {
    let Some(sandbox) = Sandbox::enter(&[Oss::LIBRARY_NEEDS]) else { return };
    let oss = Oss::start(&sandbox);
    let backend = open(&format!("{}, encrypt: true", oss.section()));
    let path = Path::from("cache/docker/registry/v2/a +ü&=%/large");
    let (first, second) = (random_bytes(LARGE_BYTES), random_bytes(LARGE_BYTES / 4));
    runtime().block_on(async {
        store::upload(&backend, &path, &first).await.expect("an upload");
        assert_eq!(backend.objects.head(&path).await.expect("a size").size, first.len() as u64);
        for range in [0..1, (10 << 20) - 5..(10 << 20) + 5, first.len() - 9..first.len()] {
            assert!(store::has(&backend, &path, &first, range).await);
        }
        assert_eq!(oss.names(), [path.as_ref()], "as Alibaba's library sees it");
        store::upload(&backend, &path, &second).await.expect("an overwriting upload");
        store::upload_and_abort(&backend, &path, &first).await.expect("an aborted upload");
        assert!(store::has(&backend, &path, &second, 0..100).await);
        assert_eq!(oss.content(), (vec![path.to_string()], vec![]), "no part is left");

        let create = PutOptions { mode: PutMode::Create, ..Default::default() };
        let again = backend.objects.put_opts(&path, "x".into(), create.clone()).await;
        assert!(matches!(again, Err(Error::AlreadyExists { .. })), "{again:?}");
        backend.objects.delete(&path).await.expect("a deletion");
        assert_eq!(oss.content(), (vec![], vec![]), "nothing is left");
        backend.objects.put_opts(&path, "x".into(), create).await.expect("it is absent");
        let gone = backend.objects.head(&Path::from("none")).await;
        assert!(matches!(gone, Err(Error::NotFound { .. })), "{gone:?}");
    });
    assert_eq!(oss.encrypted(), 4, "every new object, and no part, is to be encrypted");
}

#[test]
fn a_listing_of_oss_has_every_page() {
    let Some(sandbox) = Sandbox::enter(&[]) else { return };
    let oss = Oss::start(&sandbox);
    let backend = open(&format!("{}, rootdirectory: /cache/", oss.section()));
    assert_eq!(backend.root_directory, "cache");
    let base = Path::from("cache/docker/registry/v2/links");
    runtime().block_on(async {
        let puts = (0..1_100).map(|i| {
            let (path, objects) =
                (base.clone().join(format!("{i:05}")).join("link"), &backend.objects);
            async move { objects.put(&path, i.to_string().into()).await }
        });
        futures_util::stream::iter(puts).buffered(16).try_collect::<Vec<_>>().await.expect("puts");
        let listed = backend.objects.list(Some(&base)).try_collect::<Vec<_>>().await;
        assert_eq!(listed.expect("a listing").len(), 1_100);
        let names = backend.objects.list_with_delimiter(Some(&base)).await.expect("names");
        assert_eq!(names.common_prefixes.len(), 1_100);
    });
}
