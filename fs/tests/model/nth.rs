//! An ingest, a fetch, an eviction and a restart, each as often as it makes calls, and each time
//! another of its calls fails: of those on the storage, and of those on the local disk.

use larder_config::Fill;

use crate::{
    disk, new_nodes,
    nodes::Nodes,
    operation::{Damage, Flaw, Operation, Order, Staging, Trouble},
    reference::Reference,
};

const TOLD: Staging = Staging { is_told: true, order: Order::Forwards, flaw: Flaw::None };
const UNTOLD: Staging = Staging { is_told: false, order: Order::Backwards, flaw: Flaw::None };
/// The node that has little room, and the other one.
const SMALL: usize = 0;
const LARGE: usize = 1;
/// Contents of 3,000 bytes, of a block, of two and a half, and of more than a part.
const FEW: usize = 2;
const BLOCK: usize = 4;
const BLOCKS: usize = 6;
const PARTS: usize = 7;
/// More calls than anything makes here.
const CALLS_MAX: u32 = 1_000;

/// What comes before, the node that acts, and what it does while a call fails.
struct Scenario {
    before: Vec<Operation>,
    node: usize,
    during: Vec<Operation>,
    /// A cache that could not be looked through takes nothing in until it is, which is tried again
    /// after a minute, or at the next start.
    restarts: bool,
}

fn publish(node: usize, content: usize, staging: Staging) -> Operation {
    Operation::Publish { node, content, staging }
}

fn read(node: usize, content: usize) -> Operation {
    Operation::ReadWhole { node, content }
}

fn ingest(node: usize, content: usize, staging: Staging) -> Scenario {
    Scenario {
        before: vec![],
        node,
        during: vec![publish(node, content, staging), Operation::Settle { node }],
        restarts: false,
    }
}

fn fetch(node: usize, content: usize) -> Scenario {
    let before = match node {
        SMALL => vec![publish(LARGE, content, TOLD)],
        _ => vec![publish(node, content, TOLD), Operation::LoseCache { node }],
    };
    let during = vec![read(node, content), Operation::Settle { node }];
    Scenario { before, node, during, restarts: false }
}

/// What is fetched takes the place of what was fetched before.
fn eviction() -> Scenario {
    let (node, contents) = (SMALL, [BLOCK, BLOCKS]);
    let mut before: Vec<_> = contents.map(|content| publish(LARGE, content, TOLD)).into();
    before.extend([read(node, BLOCK), Operation::Settle { node }]);
    let during = vec![read(node, BLOCKS), Operation::Settle { node }];
    Scenario { before, node, during, restarts: false }
}

/// With a file in the cache, one that was changed, and one that was staged.
fn restart() -> Scenario {
    let (node, damage) = (LARGE, Damage::Flip);
    let before = vec![
        publish(node, FEW, TOLD),
        publish(node, BLOCK, TOLD),
        Operation::Spoil { node, content: BLOCK, damage },
        Operation::Stage { node, name: 0, content: FEW, staging: TOLD },
    ];
    let during = vec![
        Operation::Crash { node },
        read(node, FEW),
        read(node, BLOCK),
        Operation::Settle { node },
    ];
    Scenario { before, node, during, restarts: true }
}

/// Afterwards all is as it should be, and what was done is done once more.
fn after(scenario: &Scenario) -> Vec<Operation> {
    let staging = TOLD;
    let of_node = |node: usize| {
        let content = node;
        [
            publish(node, content, staging),
            Operation::ReadWhole { node: 1 - node, content },
            Operation::Crash { node },
        ]
    };
    let restart = scenario.restarts.then_some(Operation::Crash { node: scenario.node });
    let first: Vec<_> =
        [Operation::Heal].into_iter().chain(restart).chain(scenario.during.clone()).collect();
    [first, of_node(SMALL).into(), of_node(LARGE).into()].concat()
}

fn begin(scenario: &Scenario) -> Reference<Nodes> {
    let mut reference = new_nodes(Fill::Sequential);
    reference.apply_all(&scenario.before);
    reference.system.wait_until_counted(scenario.node);
    reference
}

fn each_call_on_the_storage_fails(scenario: &Scenario) {
    use Trouble::{DoneAndError, Error, Short, Stall, StallInside};
    for trouble in [Error, DoneAndError, Stall, Short, StallInside] {
        let is_over = |calls_before: &u32| {
            let mut reference = begin(scenario);
            reference.apply(&Operation::Trouble { trouble, calls_before: *calls_before });
            reference.apply_all(&scenario.during);
            let is_over = reference.system.is_in_wait();
            reference.run(&after(scenario));
            is_over
        };
        let calls = (0..CALLS_MAX).find(is_over).expect("an end");
        eprintln!("{trouble:?}: {calls} calls on the storage");
    }
}

fn each_call_on_the_disk_fails(scenario: &Scenario) {
    use disk::Fault::{DoneAndError, Error, Short, Stall};
    for fault in [Error(libc::EIO), Error(libc::ENOSPC), DoneAndError, Short, Stall] {
        let is_over = |calls_before: &u32| {
            let mut reference = begin(scenario);
            let directory = reference.system.directory(scenario.node).to_owned();
            let plan = disk::Plan::new(&directory, *calls_before, fault);
            reference.disk_fails(true);
            reference.apply_all(&scenario.during);
            let is_over = !disk::has_failed();
            drop(plan);
            reference.disk_fails(false);
            reference.run(&after(scenario));
            is_over
        };
        let calls = (0..CALLS_MAX).find(is_over).expect("an end");
        eprintln!("{fault:?}: {calls} calls on the disk");
        assert!(calls > 0, "no call has failed, so that this has proved nothing");
    }
}

#[test]
fn an_ingest_while_the_storage_fails() {
    for (content, staging) in [(FEW, TOLD), (PARTS, TOLD), (PARTS, UNTOLD)] {
        each_call_on_the_storage_fails(&ingest(LARGE, content, staging));
    }
}

#[test]
fn a_fetch_while_the_storage_fails() {
    // With room in the cache, and without.
    for (node, content) in [(SMALL, FEW), (LARGE, PARTS), (SMALL, PARTS)] {
        each_call_on_the_storage_fails(&fetch(node, content));
    }
}

#[test]
fn an_eviction_and_a_restart_while_the_storage_fails() {
    each_call_on_the_storage_fails(&eviction());
    each_call_on_the_storage_fails(&restart());
}

#[test]
fn an_ingest_while_the_disk_fails() {
    for (content, staging) in [(FEW, TOLD), (PARTS, TOLD), (PARTS, UNTOLD)] {
        each_call_on_the_disk_fails(&ingest(LARGE, content, staging));
    }
}

#[test]
fn a_fetch_while_the_disk_fails() {
    for (node, content) in [(SMALL, FEW), (LARGE, PARTS), (SMALL, PARTS)] {
        each_call_on_the_disk_fails(&fetch(node, content));
    }
}

#[test]
fn an_eviction_while_the_disk_fails() {
    each_call_on_the_disk_fails(&eviction());
}

#[test]
fn a_restart_while_the_disk_fails() {
    each_call_on_the_disk_fails(&restart());
}
