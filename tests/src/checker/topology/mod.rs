//! How the product is set up in a round, and how it is broken and mended.

mod cluster;
mod files;
mod fleet;
mod single;

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use rand::{rngs::StdRng, seq::IndexedRandom as _};

pub use cluster::{Cluster, STORE_RECOVERS};
pub use single::Single;

use super::{
    faults::{Fault, Menu, Trouble},
    proof::Rules,
    stored::Vault,
};
use crate::harness::{
    client::{Addresses, Client, Transport},
    grpc::{self, Core},
    proxy::Proxy,
    stack::SECRET,
    token::{Minter, claims},
};

/// Waits; for what is drawn by seed or paced, never for something to happen.
pub(super) async fn pause(duration: Duration) {
    #[expect(clippy::disallowed_methods, reason = "how long a fault lasts and a client stays away is what is drawn")]
    tokio::time::sleep(duration).await;
}

/// Trouble on a network, for a while.
async fn trouble(network: &Proxy, trouble: Trouble, lasts: Duration) {
    match trouble {
        Trouble::Delay(delay) => {
            network.delay(delay);
            pause(lasts).await;
            network.delay(Duration::ZERO);
        }
        Trouble::Stall => {
            network.stall();
            pause(lasts).await;
            network.resume();
        }
        Trouble::StallWay(way) => {
            network.stall_way(way);
            pause(lasts).await;
            network.resume();
        }
        Trouble::Cut => network.cut(),
        Trouble::HalfClose(way) => network.half_close(way),
        Trouble::Refuse => {
            network.refuse(true);
            network.cut();
            pause(lasts).await;
            network.refuse(false);
        }
    }
}

/// Where clients find the product. Every connection may go through another door.
#[derive(Debug, Clone, Default)]
pub struct Doors {
    /// Cores.
    pub grpc: Vec<SocketAddr>,
    /// Edges; may be none.
    pub http: Vec<SocketAddr>,
}

impl Doors {
    /// The transports that there are doors for.
    #[must_use]
    pub fn transports(&self) -> &'static [Transport] {
        if self.http.is_empty() { &[Transport::Grpc] } else { &Transport::ALL }
    }

    /// A token of this user.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn token(user: &str) -> Result<String> {
        Minter::hs256(SECRET).mint(&claims(user, "user"))
    }

    /// A stream of this user through one of the doors.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn connect(&self, transport: Transport, user: &str, random: &mut StdRng) -> Result<Client> {
        let grpc = *self.grpc.choose(random).context("a core")?;
        let http = self.http.choose(random).copied().unwrap_or(grpc);
        Client::connect(transport, Addresses { http, grpc }, &Self::token(user)?).await
    }

    /// The calls of a core as this user.
    ///
    /// # Errors
    /// When there is no token.
    pub fn core(&self, core: usize, user: &str) -> Result<Core> {
        let address = *self.grpc.get(core).context("a core")?;
        grpc::core(grpc::channel(address)?, Some(&Self::token(user)?))
    }
}

/// A running product that can be broken.
#[async_trait]
pub trait Topology: Send {
    /// Where clients find it; the same throughout.
    fn doors(&self) -> Doors;

    /// What there is to break.
    fn menu(&self) -> Menu;

    /// What it promises beyond what every setup does.
    fn rules(&self) -> Rules;

    /// Does this to it, for as long as it lasts. Afterwards every process runs again, but may not be ready yet.
    async fn inflict(&mut self, fault: Fault) -> Result<()>;

    /// Processes that have ended by themselves, which is a finding unless somebody made them; started again.
    ///
    /// # Errors
    /// When one cannot be started.
    fn fallen(&mut self) -> Result<Vec<Fault>>;

    /// Waits until everything is up and ready.
    async fn ready(&mut self) -> Result<()>;

    /// Waits until nothing is left that cores put right in their own time: rows of replies whose removal was lost. Says
    /// whether it came to that.
    async fn at_rest(&mut self, _patience: Duration) -> Result<bool> {
        Ok(true)
    }

    /// Ends it in good order, and says where the data is.
    async fn close(self: Box<Self>) -> Result<Vault>;

    /// The ends of the logs, for a report.
    fn logs(&self) -> String;
}
