//! The conformance suite, on each storage system's real server.

use larder_tests::{
    Azurite, Gcs, S3, Sandbox, Storage,
    conformance::{Lacks, conforms},
};

#[test]
fn a_local_directory_conforms() {
    let Some(sandbox) = Sandbox::enter(&[]) else { return };
    let storage = Storage::Directory(sandbox.directory("storage"));
    conforms(&storage.config(&sandbox), Lacks::default());
}

#[test]
fn s3_conforms() {
    let Some(sandbox) = Sandbox::enter(&[S3::NEEDS]) else { return };
    let s3 = S3::start(&sandbox);
    conforms(&s3.storage().config(&sandbox), Lacks::default());
}

#[test]
fn azure_conforms() {
    let Some(sandbox) = Sandbox::enter(&Azurite::NEEDS) else { return };
    let azurite = Azurite::start(&sandbox);
    conforms(&azurite.storage().config(&sandbox), Lacks::default());
}

#[test]
fn gcs_conforms() {
    let Some(sandbox) = Sandbox::enter(&[Gcs::NEEDS]) else { return };
    let gcs = Gcs::start(&sandbox);
    conforms(&gcs.storage(&sandbox).config(&sandbox), Lacks::default());
}
