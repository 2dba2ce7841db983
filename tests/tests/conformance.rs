//! The conformance suite, on each storage system's real server.

use std::time::Duration;

use larder_tests::{
    Azurite, Gcs, Keystone, Oss, S3, Sandbox, Storage, Swift,
    conformance::{Lacks, conforms},
    files_in,
};

/// Longer than a test: that tokens end is tested where it matters.
const TOKEN_LIFE: Duration = Duration::from_secs(3600);

#[test]
fn a_local_directory_conforms() {
    let Some(sandbox) = Sandbox::enter(&[]) else { return };
    let directory = sandbox.directory("storage");
    let config = Storage::Directory(directory.clone()).config(&sandbox);
    conforms(&config, Lacks::default(), || files_in(&directory));
}

#[test]
fn s3_conforms() {
    let Some(sandbox) = Sandbox::enter(&[S3::NEEDS]) else { return };
    let s3 = S3::start(&sandbox);
    conforms(&s3.storage().config(&sandbox), Lacks::default(), || all(s3.content()));
}

#[test]
fn azure_conforms() {
    let Some(sandbox) = Sandbox::enter(&Azurite::NEEDS) else { return };
    let azurite = Azurite::start(&sandbox);
    // It removes blocks that nobody committed by itself, after a week.
    let lacks = Lacks { abort: true, ..Lacks::default() };
    conforms(&azurite.storage().config(&sandbox), lacks, || azurite.names());
}

#[test]
fn gcs_conforms() {
    let Some(sandbox) = Sandbox::enter(&[Gcs::NEEDS]) else { return };
    let gcs = Gcs::start(&sandbox);
    let config = gcs.storage(&sandbox).config(&sandbox);
    conforms(&config, Lacks::default(), || all(gcs.content()));
}

#[test]
fn oss_conforms() {
    let Some(sandbox) = Sandbox::enter(&[]) else { return };
    let oss = Oss::start(&sandbox);
    conforms(&oss.storage().config(&sandbox), Lacks::default(), || all(oss.content()));
}

#[test]
fn swift_conforms() {
    let Some(sandbox) = Sandbox::enter(&Swift::NEEDS) else { return };
    swift_of(&sandbox, &Swift::start(&sandbox, TOKEN_LIFE));
}

#[test]
fn swift_with_keystone_conforms() {
    let needs = [&Swift::NEEDS[..], &[Keystone::NEEDS]].concat();
    let Some(sandbox) = Sandbox::enter(&needs) else { return };
    let keystone = Keystone::start(&sandbox, TOKEN_LIFE);
    swift_of(&sandbox, &Swift::with_keystone(&sandbox, &keystone));
}

fn swift_of(sandbox: &Sandbox, swift: &Swift<'_>) {
    let lacks = Lacks { atomic_create: true, ..Lacks::default() };
    conforms(&swift.storage().config(sandbox), lacks, || swift.names());
}

/// Objects and uploads.
fn all((objects, uploads): (Vec<String>, Vec<String>)) -> Vec<String> {
    [objects, uploads].concat()
}
