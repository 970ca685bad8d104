//! The way to the other cores that share the store, and the right to be beside them.

use std::sync::Arc;

use anyhow::Context as _;

use crate::{
    bus::{Bus, local::LocalBus, nats::NatsBus},
    config::Config,
    seal::KeyRing,
    session::register::{Company, Register},
    store::SessionStore,
};

/// See the module's text.
#[derive(Debug)]
pub(super) struct Peers {
    pub(super) bus: Arc<dyn Bus>,
    pub(super) register: Register,
}

impl Peers {
    /// Opens the bus and enters the register of cores: from here on whoever rotates keys knows of this one. Does not wait for
    /// the bus.
    ///
    /// # Errors
    /// A setting that cannot be used; several cores without a common bus.
    pub(super) async fn join(config: &Config, store: Arc<dyn SessionStore>, ring: &KeyRing) -> anyhow::Result<Self> {
        let (bus, company): (Arc<dyn Bus>, _) = if config.bus.is_local() {
            (Arc::new(LocalBus::alone()), Company::Alone)
        } else {
            let bus = NatsBus::connect(config.bus.nats()).await.map_err(|error| anyhow::anyhow!("bus.{error}"))?;
            (Arc::new(bus), Company::Together)
        };
        let (lapse, call) = (config.session.reply_lapse, config.store.call_timeout);
        let register = Register::new(store, rand::random(), company, ring, lapse, call);
        register.enter().await.context("bus.url")?;
        Ok(Self { bus, register })
    }

    /// Keeps this core's place; returns when it is lost.
    pub(super) async fn lost(&self) {
        self.register.keep().await;
    }

    /// Sends what was said last, and gives the place back.
    pub(super) async fn leave(&self) {
        self.bus.close().await;
        if let Err(error) = self.register.leave().await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "this core's row in the register lapses by itself"
            );
        }
    }
}
