//! Serving, until a signal ends it.

use std::process::ExitCode;
use std::sync::Arc;

use kernel::SystemClock;

use crate::config::Config;
use crate::{serve, telemetry};

/// Serves until SIGINT or SIGTERM, then drains.
pub(super) async fn until_signal(config: Config) -> Result<ExitCode, anyhow::Error> {
    let mut signals = Signals::listen()?;
    let metrics = telemetry::init_metrics()?;
    let node = tokio::select! {
        started = serve::Node::start(config, Arc::new(SystemClock), metrics) => started?,
        () = signals.asked_to_stop() => return Ok(ExitCode::SUCCESS),
    };
    signals.asked_to_stop().await;
    tracing::info!("shutting down");
    node.stop().await;
    Ok(ExitCode::SUCCESS)
}

/// SIGINT and SIGTERM, heard from the moment this is made: before the process says that it listens.
pub(super) struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    pub(super) fn listen() -> Result<Self, std::io::Error> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Waits for either.
    pub(super) async fn asked_to_stop(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
