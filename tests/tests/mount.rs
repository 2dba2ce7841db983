//! The mount is a directory like any other, to look at; and nobody can spoil a blob in it.

use larder_layout::{Entry, Link};
use larder_tests::{Format, Image, Node, Sandbox, Storage, Upstream, scenario::wait_until_cached};

/// A node that has pulled an image, and everything that it needs.
fn with_a_pulled_image(test: impl FnOnce(&Node<'_>, &Image)) {
    let Some(sandbox) = Sandbox::enter(&[&Node::NEEDS[..], &[Upstream::NEEDS]].concat()) else {
        return;
    };
    let upstream = Upstream::start(&sandbox);
    let image = Image::new(Format::Oci);
    upstream.registry().push(&image);
    let storage = Storage::Directory(sandbox.directory("storage"));
    let node = Node::start(&sandbox, "node", &storage, Some(&upstream.url()));
    node.registry().pull(&image, &image.native).expect("the node pulls through");
    wait_until_cached(&node, &image, &[&image.native]);
    test(&node, &image);
}

fn text(entry: Entry) -> String {
    entry.path().to_str().expect("a path in ASCII").to_owned()
}

// "What none of its kind does: operators see the cache as a filesystem."

#[test]
fn ordinary_programs_read_the_mount() {
    with_a_pulled_image(|node, image| {
        let data = image.data();
        let path = text(Entry::Blob(data.digest.clone()));
        let stat = node.on_mount("stat", &["--format", "%F %a %s", &path]).expect("stat");
        assert_eq!(stat, format!("regular file 444 {}\n", data.bytes.len()));
        let copied =
            node.on_mount("sh", &["-c", &format!("cp {path} /run/copy; sha256sum </run/copy")]);
        assert!(copied.expect("cp").starts_with(data.digest.hex()));
        // The middle alone, as a reader that seeks.
        let middle = format!("dd if={path} bs=1 skip=1000000 count=5 status=none | od -An -tu1");
        let middle = node.on_mount("sh", &["-c", &middle]).expect("dd");
        let expected: Vec<_> = data.bytes[1_000_000..1_000_005].iter().map(u8::to_string).collect();
        assert_eq!(middle.split_whitespace().collect::<Vec<_>>(), expected);

        let repository = image.repository.parse().expect("a repository");
        let link = Link::Tag(repository, image.tag.parse().expect("a tag"));
        let target = link.target(&image.index.digest);
        let tag = text(Entry::Link(link));
        let long = node.on_mount("ls", &["-l", &tag]).expect("ls -l");
        assert!(long.trim_end().ends_with(&format!("-> {}", target.display())), "{long}");
        let index = node.on_mount("cat", &[&tag]).expect("cat");
        assert_eq!(index.as_bytes(), image.index.bytes, "a tag reads as its manifest");

        let links = node.on_mount("find", &[&format!("repositories/{}", image.repository)]);
        let links = links.expect("find");
        for blob in image.native.layers() {
            let link = format!("_layers/sha256/{}", blob.digest.hex());
            assert!(links.contains(&link), "{link} is missing in:\n{links}");
        }
        let broken = node.on_mount("find", &["repositories", "-xtype", "l"]).expect("find -xtype");
        assert_eq!(broken, "", "links that lead nowhere");
        assert_eq!(node.on_mount("ls", &["ingest"]).expect("ls"), "", "nothing is left staged");
    });
}

// "write under `blobs/` EPERM": blobs are immutable, for root too.

#[test]
fn a_blob_can_be_written_to_by_nobody() {
    with_a_pulled_image(|node, image| {
        let blob = text(Entry::Blob(image.data().digest.clone()));
        let other = text(Entry::Blob(image.index.digest.clone()));
        for script in [
            format!("echo x >>{blob}"),
            format!("dd if=/dev/zero of={blob} bs=1 count=1 conv=notrunc"),
            format!("truncate --size=0 {blob}"),
            format!("rm -f {blob}"),
            format!("mv -f {blob} ingest/moved"),
            format!("mv -f {blob} {other}"),
            format!("chmod 0644 {blob}"),
            format!("chown nobody {blob}"),
            format!("touch {blob}"),
            "echo x >blobs/sha256/$(printf %064d 0)".to_owned(),
        ] {
            let failure = node.on_mount("sh", &["-c", &script]).expect_err(&script);
            assert!(failure.0.contains("Operation not permitted"), "{failure:?}");
        }
        node.check_blob(&image.data().digest).expect("the blob is as it was");
        node.check_blob(&image.index.digest).expect("the other blob is as it was");
    });
}
