//! The libraries that the vendors of storage systems publish, each told what to do by a few lines of
//! Python.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use crate::{Sandbox, run};

/// What a test needs to use them.
pub const NEEDS: &str = "larder-python";
const TIMEOUT: Duration = Duration::from_secs(60);

/// Runs a script, and gives what it prints.
///
/// # Panics
/// When it fails.
pub fn python(script: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(NEEDS);
    command.arg("-c").arg(script).args(arguments);
    run(command, TIMEOUT).expect("the vendor's library does what it is told")
}

/// Writes objects into files, and gives a file with a line for each: its name, and that of the file
/// with its content.
pub fn write_objects(sandbox: &Sandbox, objects: &[(String, Vec<u8>)]) -> PathBuf {
    let lines = objects.iter().enumerate().map(|(index, (name, content))| {
        let path = sandbox.path(&format!("object-{index}"));
        fs::write(&path, content).expect("a file with the content of an object");
        format!("{name} {}\n", path.display())
    });
    sandbox.file("objects.txt", &lines.collect::<String>())
}
