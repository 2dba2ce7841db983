//! Images that no other test has: random content, several layers, two platforms.

use std::{env, fs, fs::File, io::Read, io::Write};

use flate2::{Compression, write::GzEncoder};
use larder_layout::{Algorithm, Digest};
use serde_json::{Value, json};

/// The statically linked shell that makes an image run.
const BUSYBOX: &str = "/bin/busybox";
const DATA_BYTES: usize = 4 << 20;

/// Whose media types an image has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OCI image spec 1.0.
    Oci,
    /// Docker image manifest version 2, schema 2.
    Docker,
}

impl Format {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Oci, Self::Docker];

    fn index(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.index.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.list.v2+json",
        }
    }

    fn manifest(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.manifest.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.v2+json",
        }
    }

    fn config(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.config.v1+json",
            Self::Docker => "application/vnd.docker.container.image.v1+json",
        }
    }

    fn layer(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Docker => "application/vnd.docker.image.rootfs.diff.tar.gzip",
        }
    }
}

/// Content and what it is.
#[derive(Clone, Debug)]
pub struct Blob {
    /// The content's digest.
    pub digest: Digest,
    /// The content's media type.
    pub media_type: &'static str,
    /// The content.
    pub bytes: Vec<u8>,
}

impl Blob {
    /// A blob of `bytes`.
    pub fn new(media_type: &'static str, bytes: Vec<u8>) -> Self {
        Self { digest: Digest::of(Algorithm::Sha256, &bytes), media_type, bytes }
    }

    fn descriptor(&self) -> Value {
        json!({
            "mediaType": self.media_type,
            "digest": self.digest.to_string(),
            "size": self.bytes.len(),
        })
    }
}

/// One platform's share of an image.
#[derive(Clone, Debug)]
pub struct Platform {
    /// The manifest.
    pub manifest: Blob,
    /// The config, and the layers from the bottom up.
    pub blobs: Vec<Blob>,
}

/// A multi-platform image with a name.
#[derive(Clone, Debug)]
pub struct Image {
    /// The registry that clients are told it is in: Docker Hub, unless a test says otherwise.
    pub registry: String,
    /// `library/<random>`
    pub repository: String,
    /// `1.0`
    pub tag: String,
    /// The index of both platforms.
    pub index: Blob,
    /// The machine's own platform. It runs.
    pub native: Platform,
    /// The other platform, which nobody here can run.
    pub foreign: Platform,
    /// What `cat /greeting` prints in the image.
    pub greeting: String,
    /// What `sha256sum /data` prints first in the image: four incompressible MiB.
    pub data_sha256: String,
}

impl Platform {
    /// The layers from the bottom up.
    pub fn layers(&self) -> &[Blob] {
        &self.blobs[1..]
    }
}

impl Image {
    /// Builds an image that has never existed before.
    pub fn new(format: Format) -> Self {
        let name = hex(&random_bytes(8));
        let greeting = format!("hello from {name}");
        let data = random_bytes(DATA_BYTES);
        let data_layer = layer(format, &[("data", &data)]);
        let busybox = fs::read(BUSYBOX).expect("busybox-static is installed");
        let (native, foreign) = match env::consts::ARCH {
            "aarch64" => ("arm64", "amd64"),
            _ => ("amd64", "arm64"),
        };
        let build = |architecture: &str, shell: &[u8]| {
            let layers = vec![
                // The name makes it a layer that no other image shares.
                layer(format, &[("bin/busybox", shell), ("name", name.as_bytes())]),
                data_layer.clone(),
                layer(
                    format,
                    &[("greeting", greeting.as_bytes()), ("arch", architecture.as_bytes())],
                ),
            ];
            platform(format, architecture, layers)
        };
        let (native_platform, foreign_platform) =
            (build(native, &busybox), build(foreign, b"another machine's busybox"));
        let entry = |platform: &Platform, architecture: &str| {
            let mut descriptor = platform.manifest.descriptor();
            descriptor["platform"] = json!({ "os": "linux", "architecture": architecture });
            descriptor
        };
        let index = json!({
            "schemaVersion": 2,
            "mediaType": format.index(),
            "manifests": [entry(&native_platform, native), entry(&foreign_platform, foreign)],
        });
        Self {
            registry: "docker.io".to_owned(),
            repository: format!("library/{name}"),
            tag: "1.0".to_owned(),
            index: Blob::new(format.index(), index.to_string().into_bytes()),
            native: native_platform,
            foreign: foreign_platform,
            greeting,
            data_sha256: Digest::of(Algorithm::Sha256, &data).hex().to_owned(),
        }
    }

    /// The name that clients pull it by.
    pub fn name(&self) -> String {
        format!("{}/{}:{}", self.registry, self.repository, self.tag)
    }

    /// The same image in another registry, `quay.io`, or below a path of one, `cache:5000/quay.io`.
    #[must_use]
    pub fn at(&self, registry: &str) -> Self {
        Self { registry: registry.to_owned(), ..self.clone() }
    }

    /// The layers and configs of both platforms. What both share comes twice.
    pub fn blobs(&self) -> impl Iterator<Item = &Blob> {
        self.native.blobs.iter().chain(&self.foreign.blobs)
    }

    /// The manifests in the order in which they can be pushed: the index comes last.
    pub fn manifests(&self) -> [&Blob; 3] {
        [&self.native.manifest, &self.foreign.manifest, &self.index]
    }

    /// The layer with the incompressible data: the largest.
    pub fn data(&self) -> &Blob {
        self.native.blobs.iter().max_by_key(|blob| blob.bytes.len()).expect("an image has layers")
    }
}

/// Bytes that nobody has seen before and nothing can compress.
pub fn random_bytes(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut random = File::open("/dev/urandom").expect("/dev/urandom opens");
    random.read_exact(&mut bytes).expect("random bytes");
    bytes
}

fn platform(format: Format, architecture: &str, layers: Vec<(Blob, Digest)>) -> Platform {
    let diff_ids: Vec<_> = layers.iter().map(|(_, diff_id)| diff_id.to_string()).collect();
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": { "Cmd": ["/bin/sh"], "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = Blob::new(format.config(), config.to_string().into_bytes());
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": format.manifest(),
        "config": config.descriptor(),
        "layers": layers.iter().map(|(blob, _)| blob.descriptor()).collect::<Vec<_>>(),
    });
    let mut blobs = vec![config];
    blobs.extend(layers.into_iter().map(|(blob, _)| blob));
    Platform { manifest: Blob::new(format.manifest(), manifest.to_string().into_bytes()), blobs }
}

/// A layer with these files, and its digest before compression. A busybox gets its links.
fn layer(format: Format, files: &[(&str, &[u8])]) -> (Blob, Digest) {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = header(tar::EntryType::Regular);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, path, *content).expect("a file in a layer");
        if path.ends_with("/busybox") {
            for applet in ["sh", "cat", "sha256sum"] {
                let link = format!("bin/{applet}");
                tar.append_link(&mut self::header(tar::EntryType::Symlink), link, "busybox")
                    .expect("a link in a layer");
            }
        }
    }
    let tar = tar.into_inner().expect("the end of a layer");
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&tar).expect("a compressed layer");
    let blob = Blob::new(format.layer(), gzip.finish().expect("a compressed layer"));
    (blob, Digest::of(Algorithm::Sha256, &tar))
}

fn header(entry_type: tar::EntryType) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(entry_type);
    header.set_mode(0o755);
    header.set_size(0);
    header
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
