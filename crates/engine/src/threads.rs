//! The engine's own threads: named, and their end by a panic is a failure of the engine like any other.

use std::sync::Arc;
use std::thread::JoinHandle;

use crate::error::EngineFailure;
use crate::shared::Shared;

struct Watchman {
    shared: Arc<Shared>,
    name: &'static str,
}

impl Drop for Watchman {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.fail(EngineFailure::ThreadGone { name: self.name });
        }
    }
}

/// Starts a thread of the engine.
pub(crate) fn spawn(
    shared: &Arc<Shared>,
    name: &'static str,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, EngineFailure> {
    let watchman = Watchman { shared: Arc::clone(shared), name };
    let guarded = move || {
        let _watchman = watchman;
        body();
    };
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(guarded)
        .map_err(|source| EngineFailure::Thread { name, source: Arc::new(source) })
}

/// Waits for the end of a thread. A panic of it was latched as a failure already.
pub(crate) fn join(thread: Option<JoinHandle<()>>) {
    if let Some(thread) = thread {
        drop(thread.join());
    }
}
