//! What the machines have in common that tests boot to have another kernel: they see the host's
//! files, and run tests of the same executable, which are ignored outside.

use std::{env, path::PathBuf};

/// What a machine runs: the tests whose names contain `filter`, one by one, with these lines before.
/// With `CI`, a test that lacks something fails there.
pub fn command(filter: &str, before: &str) -> String {
    let path = env::var("PATH").expect("a search path");
    let test = env::current_exe().expect("the path of the test");
    format!(
        "export PATH='{path}' CI=1\n\
         {before}\n\
         exec '{}' --ignored --nocapture --test-threads=1 '{filter}'\n",
        test.display()
    )
}

/// Where a program is, or a kernel.
pub fn executable(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|directory| directory.join(name)).find(|path| path.exists())
}
