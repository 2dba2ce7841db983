//! The conformance suite, on each storage system's real server.

use larder_tests::{
    S3, Sandbox,
    conformance::{Lacks, conforms},
};

#[test]
fn s3_conforms() {
    let Some(sandbox) = Sandbox::enter(&[S3::NEEDS]) else { return };
    let s3 = S3::start(&sandbox);
    conforms(&s3.storage().config(&sandbox), Lacks::default());
}
