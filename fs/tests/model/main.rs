//! The contract as a model, and nodes that are held to it: random operations in random trouble.
//!
//! `PROPTEST_CASES` is how many cases there are of each kind; proptest tells how to have one again.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

mod disk;
mod nodes;
mod nth;
mod operation;
mod reference;
mod store;

use std::sync::LazyLock;

use larder_config::Fill;
use proptest::{
    prelude::*,
    sample::select,
    test_runner::{Config, TestError, TestRunner},
};

use self::{
    nodes::Nodes,
    operation::{Flaw, Link, Operation, Order, Staging},
    reference::{Content, Reference},
};

const CASES: u32 = 700;

/// Two nodes with nothing in them, on a storage with nothing in it.
fn new_nodes(fill: Fill) -> Reference<Nodes> {
    static CONTENTS: LazyLock<Vec<Content>> = LazyLock::new(|| Content::all(0));
    Reference::new(Nodes::new(fill), &CONTENTS, "library/app")
}

fn check(fill: Fill, operations: &[Operation]) {
    new_nodes(fill).run(operations);
}

fn check_many(operations: impl Strategy<Value = Vec<Operation>>) {
    let defaults = Config::default();
    let mut config = Config { failure_persistence: None, max_shrink_iters: 2_000, ..defaults };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = CASES;
    }
    let fill = select(vec![Fill::Never, Fill::Sequential, Fill::Always]);
    let outcome = TestRunner::new(config).run(&(fill, operations), |(fill, operations)| {
        check(fill, &operations);
        Ok(())
    });
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(reason, (fill, operations))) => {
            panic!("{reason}, after Fill::{fill:?}, {operations:?}")
        }
        Err(e) => panic!("{e}"),
    }
}

#[test]
fn nothing_goes_wrong() {
    check_many(operation::calm());
}

#[test]
fn caches_are_spoiled_and_nodes_crash() {
    check_many(operation::rough());
}

#[test]
fn the_storage_fails() {
    check_many(operation::faulty());
}

/// A node refuses a link to what it knows to be damaged, which another node still has cached.
#[test]
fn regression_a_link_to_a_damaged_blob() {
    let (content, link) = (3, Link::Tag(0));
    let staging = Staging { is_told: false, order: Order::Forwards, flaw: Flaw::None };
    let operations = [
        Operation::Publish { node: 0, content, staging },
        Operation::DamageStored { content },
        Operation::Open { node: 1, slot: 0, content },
        Operation::Link { node: 1, link, content },
    ];
    check(Fill::Never, &operations);
}

/// Who waits for a rename may be interrupted at any step of it. The staged file can then be
/// published once more, nothing of it is left, and its name is free afterwards.
#[test]
fn regression_a_rename_is_interrupted() {
    let plain = Staging { is_told: false, order: Order::Forwards, flaw: Flaw::None };
    let told = Staging { is_told: true, ..plain };
    let (node, name, content) = (1, 0, 5);
    for (staging, to) in [(plain, content), (told, content), (told, 3)] {
        for steps in 1..40 {
            let operations = [
                Operation::Stage { node, name, content, staging },
                Operation::Settle { node },
                Operation::InterruptedRename { node, name, content: to, steps },
                Operation::Rename { node, name, content },
                Operation::Settle { node },
                Operation::Stage {
                    node,
                    name,
                    content,
                    staging: Staging { order: Order::Truncated, ..staging },
                },
            ];
            check(Fill::Never, &operations);
        }
    }
}
