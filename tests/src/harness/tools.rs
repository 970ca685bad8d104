//! The programs that `tests/scripts/fetch.py` puts into the cache.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

/// The root of the workspace.
#[must_use]
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is a folder of the workspace")
}

/// A fetched file or folder by its path in the cache, e.g. `bin/buf`.
///
/// # Errors
/// When it was not fetched: a missing program is a failure, never a skipped test.
pub fn tool(path: &str) -> Result<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "where the cache is, is a fact about the machine")]
    let cache = std::env::var_os("CHATBOX_CACHE").map_or_else(|| workspace().join(".cache"), PathBuf::from);
    let found = cache.join(path);
    ensure!(found.exists(), "{} is missing: run `make test-tools`", found.display());
    Ok(found)
}

/// One of our own binaries, built beside the running test.
///
/// # Errors
/// When it was not built.
pub fn binary(name: &str) -> Result<PathBuf> {
    // A test runs as TARGET/PROFILE/deps/NAME-HASH, a program of this crate as TARGET/PROFILE/NAME.
    let own = std::env::current_exe().context("the path of the running test")?;
    let folder = own.parent().context("the test is in a build folder")?;
    let profile = if folder.ends_with("deps") { folder.parent().context("deps is in a folder")? } else { folder };
    let found = profile.join(name);
    ensure!(found.exists(), "{} is missing: run `make test-build`", found.display());
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_the_way_to_get_it() {
        let error = tool("bin/no-such-tool").unwrap_err().to_string();
        assert!(error.contains("no-such-tool") && error.contains("make test-tools"), "{error}");
        let error = binary("no-such-binary").unwrap_err().to_string();
        assert!(error.contains("no-such-binary") && error.contains("make test-build"), "{error}");
    }
}
