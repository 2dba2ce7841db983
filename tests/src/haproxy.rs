//! HAProxy with the configuration that operators get.

use std::process::Command;

use crate::{Process, Registry, Sandbox, client::COMMAND_TIMEOUT, run};

const SHIPPED: &str = include_str!("../../scripts/deploy/haproxy.cfg");

/// A load balancer in front of two nodes.
pub struct Haproxy {
    address: String,
    process: Process,
}

impl Haproxy {
    /// What a test needs to have one.
    pub const NEEDS: &'static str = "haproxy";

    /// Starts it with the shipped configuration, in which only the addresses are changed, and
    /// waits until it has found both nodes healthy.
    pub fn start(sandbox: &Sandbox, nodes: [&str; 2]) -> Self {
        let address = sandbox.address();
        let replace = |text: &str, from: &str, to: &str| {
            assert_eq!(text.matches(from).count(), 1, "{from} once in haproxy.cfg");
            text.replace(from, to)
        };
        let config = replace(SHIPPED, "bind :5000", &format!("bind {address}"));
        let config = replace(&config, "cache-1.example.net:5000", nodes[0]);
        let config = replace(&config, "cache-2.example.net:5000", nodes[1]);
        let config = sandbox.file("haproxy.cfg", &config);

        let mut check = Command::new("haproxy");
        check.args(["-c", "-f"]).arg(&config);
        run(check, COMMAND_TIMEOUT).expect("HAProxy accepts its configuration");
        let mut command = Command::new("haproxy");
        command.args(["-db", "-f"]).arg(&config);
        let mut process = Process::start(sandbox, "haproxy", command);
        let registry = Registry::at(&address);
        process.wait_until("an answer", || registry.is_ok("/v2/").then_some(()));
        Self { address, process }
    }

    /// The requests that it answered with a server error: its own, or that of a node.
    pub fn server_errors(&self) -> Vec<String> {
        let log = self.process.log();
        // option httplog: process, client, date, frontend, backend/server, timers, status, ...
        let is_error = |line: &&str| {
            let mut words = line.split_whitespace().skip_while(|word| !word.starts_with("nodes/"));
            words.nth(2).is_some_and(|status| status.starts_with('5'))
        };
        log.lines().filter(is_error).map(str::to_owned).collect()
    }

    /// Its address, host and port.
    pub fn address(&self) -> &str {
        &self.address
    }
}
