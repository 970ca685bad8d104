//! One core on SQLite, one edge, and a network between them.

use anyhow::{Result, bail};
use async_trait::async_trait;
use tempfile::TempDir;

use super::{
    Doors, Topology,
    files::{CHECKPOINT, REPLAY},
    fleet::{Cores, Fleet},
};
use crate::checker::{
    faults::{Fault, Link, Menu},
    proof::Rules,
    stored::Vault,
};

/// See the module's text.
#[derive(Debug)]
pub struct Single {
    folder: TempDir,
    key: String,
    fleet: Fleet,
    menu: Menu,
}

impl Single {
    /// Starts all of it, with this program as core and these variables for it, to be broken in these ways.
    ///
    /// # Errors
    /// When something was not built or does not get ready.
    pub async fn start(binary: &str, vars: Vec<(String, String)>, menu: Menu) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let key = chatbox_core::seal::KeyRing::generate_key();
        let cores = Cores { count: 1, binary, vars, settings: "store.url = \"sqlite:chatbox.db\"", key: &key };
        let fleet = Fleet::start(folder.path(), cores).await?;
        Ok(Self { folder, key, fleet, menu })
    }
}

#[async_trait]
impl Topology for Single {
    fn doors(&self) -> Doors {
        self.fleet.doors()
    }

    fn menu(&self) -> Menu {
        self.menu
    }

    fn rules(&self) -> Rules {
        Rules { replay: REPLAY, one_core: true, checkpoint: CHECKPOINT }
    }

    async fn inflict(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Kill(victim, down) => self.fleet.kill(victim, down).await,
            Fault::Drain(victim) => self.fleet.drain(victim).await,
            Fault::Freeze(victim, lasts) => self.fleet.freeze(victim, lasts).await,
            Fault::Network(Link::Core(core), trouble, lasts) => self.fleet.trouble(core, trouble, lasts).await,
            Fault::Fell(_)
            | Fault::Network(Link::Store | Link::Bus, ..)
            | Fault::KillStore(..)
            | Fault::FreezeStore(..)
            | Fault::KillBus(_) => {
                bail!("{fault:?} is not for this setup")
            }
        }
    }

    fn fallen(&mut self) -> Result<Vec<Fault>> {
        self.fleet.fallen()
    }

    async fn ready(&mut self) -> Result<()> {
        self.fleet.ready().await
    }

    async fn close(self: Box<Self>) -> Result<Vault> {
        self.fleet.close().await?;
        let database = self.folder.path().join("chatbox.db");
        Ok(Vault::sqlite(self.folder, database, self.key))
    }

    fn logs(&self) -> String {
        self.fleet.logs()
    }

    fn logged(&self, text: &str) -> usize {
        self.fleet.logged(text)
    }
}
