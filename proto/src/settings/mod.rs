//! How settings are read, the same in every binary: defaults, then a TOML file, then environment variables; all mistakes
//! are reported at once.
//!
//! Every setting has two variables: its path in upper case after `CHATBOX_<ROLE>_`, which is for this binary alone, and after
//! `CHATBOX_`, which all binaries read; the first one wins. For the role `EDGE` the setting `limits.open_timeout` is
//! `CHATBOX_EDGE_LIMITS_OPEN_TIMEOUT` or `CHATBOX_LIMITS_OPEN_TIMEOUT`. Elements of arrays of tables are counted from 0:
//! `CHATBOX_PROVIDERS_0_API_KEY`. A list is separated by commas, or written as a TOML array. An empty variable counts as not
//! set.
//!
//! A configuration is a struct with `#[serde(default, deny_unknown_fields)]` whose `Default` holds the defaults. This
//! module reads neither files nor the environment: `main` does, and hands both in.

mod layers;
mod units;

use std::{collections::BTreeMap, fmt, io, path::Path};

use serde::{Serialize, de::DeserializeOwned};

pub use layers::load;
pub use units::{ByteSize, duration};

/// Environment variables by name. `main` collects them; tests write a map.
pub type Vars = BTreeMap<String, String>;

/// Reads a file that a setting names. `main` passes `std::fs::read_to_string`.
pub type ReadFile<'a> = &'a dyn Fn(&Path) -> io::Result<String>;

/// Everything that is wrong with a configuration, one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes(pub Vec<String>);

impl Mistakes {
    /// `Ok` when there are none.
    ///
    /// # Errors
    /// Itself, when there are some.
    pub fn into_result(self) -> Result<(), Self> {
        if self.0.is_empty() { Ok(()) } else { Err(self) }
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Mistakes {}

/// Where the product runs: what is only good enough for a laptop is refused in production.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// A laptop or a test.
    Dev,
    /// Everything else. The default, so that nobody runs the lenient one by leaving it out.
    #[default]
    Production,
}

impl Profile {
    /// Whether the strict rules hold.
    #[must_use]
    pub const fn is_production(self) -> bool {
        matches!(self, Self::Production)
    }
}

/// The effective values as TOML. Secrets show themselves redacted, since that is how they serialize.
#[must_use]
pub fn print<T: Serialize>(config: &T) -> String {
    toml::to_string_pretty(config).expect("a configuration is made of tables, strings, numbers and lists")
}

/// What a configuration must be able to do.
pub trait Settings: Serialize + DeserializeOwned + Default {}

impl<T: Serialize + DeserializeOwned + Default> Settings for T {}
