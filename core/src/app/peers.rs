//! The way to the other cores that share the store, and the right to be beside them.

use std::sync::Arc;

use anyhow::Context as _;

use crate::{
    bus::{Bus, local::LocalBus, nats::NatsBus},
    config::Config,
    session::{Company, Membership},
    store::SessionStore,
};

/// See the module's text.
#[derive(Debug)]
pub(super) struct Peers {
    pub(super) bus: Arc<dyn Bus>,
    /// `None` for a store that has one owner anyway.
    membership: Option<Membership>,
}

impl Peers {
    /// Opens the bus and claims the store. Does not wait for the bus.
    ///
    /// # Errors
    /// A setting that cannot be used; several cores without a common bus.
    pub(super) async fn join(config: &Config, store: Arc<dyn SessionStore>) -> anyhow::Result<Self> {
        let (bus, company): (Arc<dyn Bus>, _) = if config.bus.is_local() {
            (Arc::new(LocalBus::alone()), Company::Alone)
        } else {
            let bus = NatsBus::connect(config.bus.nats()).await.map_err(|error| anyhow::anyhow!("bus.{error}"))?;
            (Arc::new(bus), Company::Together)
        };
        let membership = if store.is_shared() {
            let (lapse, call) = (config.session.reply_lapse, config.store.call_timeout);
            Some(Membership::join(store, company, lapse, call).await.context("bus.url")?)
        } else {
            None
        };
        Ok(Self { bus, membership })
    }

    /// Waits until the claim on the store is lost.
    pub(super) async fn lost(&self) {
        match &self.membership {
            Some(membership) => membership.keep().await,
            None => std::future::pending().await,
        }
    }

    /// Sends what was said last, and gives the claim back.
    pub(super) async fn leave(&self) {
        self.bus.close().await;
        if let Some(membership) = &self.membership {
            membership.leave().await;
        }
    }
}
