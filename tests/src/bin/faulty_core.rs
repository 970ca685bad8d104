//! Core with a store that dies or lies, or a bus that lies: `chatbox-core`'s own app and settings, and
//! [`FaultyStore`] around its store,
//! [`FaultyBus`] around its bus.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use chatbox_core::{
    app::{App, BusDecorator},
    config::Config,
    seal::KeyRing,
    store::SessionStore,
    telemetry,
};
use chatbox_proto::settings::Vars;
use chatbox_tests::checker::faulty::{ABORT, BUS_LIE, BusLie, FORGETFUL, FaultyBus, FaultyStore, LIE, Orders};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    ensure!(arguments.next().as_deref() == Some("--config"), "usage: faulty-core --config FILE");
    let file = PathBuf::from(arguments.next().context("--config FILE")?);
    let vars: Vars = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let text = std::fs::read_to_string(&file)?;
    let config = Config::load(Some(&text), &vars, &|path| std::fs::read_to_string(path))?;
    let orders = Orders {
        failpoint: vars.get(ABORT).map(|failpoint| failpoint.parse()).transpose()?,
        lie: vars.get(LIE).map(|lie| lie.parse()).transpose()?,
        forgetful: vars.contains_key(FORGETFUL),
    };
    let bus_lie = vars.get(BUS_LIE).map(|lie| lie.parse()).transpose()?;
    // One provider for the whole process; it fails only when there is one already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    telemetry::init(&config.log)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(config, orders, bus_lie))
}

async fn serve(config: Config, orders: Orders, bus_lie: Option<BusLie>) -> Result<()> {
    let ring = || KeyRing::from_config(config.keys.primary_id().unwrap_or_default(), config.keys.pairs());
    let (ring, keys) = (ring()?, ring()?);
    let models = config.build_models()?;
    let decorate = |store: Arc<dyn SessionStore>| -> (Arc<dyn SessionStore>, BusDecorator) {
        let honest = store.clone();
        let bus: BusDecorator = Box::new(move |bus| match bus_lie {
            Some(lie) => Arc::new(FaultyBus::new(bus, honest, keys, lie)),
            None => bus,
        });
        (Arc::new(FaultyStore::new(store, ring, orders)), bus)
    };
    let app = App::bind_over(config, models, decorate).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let shutdown = CancellationToken::new();
    let running = app.run(shutdown.clone());
    tokio::pin!(running);
    tokio::select! {
        ended = &mut running => return ended,
        _ = terminate.recv() => shutdown.cancel(),
    }
    running.await
}
