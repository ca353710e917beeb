//! Settings, shown and changed: the shell between the wire, the table of the core, and Raft.
//!
//! A change is checked here, so that a wrong one is answered at once and with everything that is wrong; then it is proposed
//! to Raft, where it is checked again. Any node takes it. A change that is set twice is the same as once, so one
//! whose outcome is unknown, or that was planned against a state that has moved on, is simply proposed again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use understudy_control::{Control, ProposeError};
use understudy_core::command::{Command, Outcome, Rejection};
use understudy_core::settings::{SETTINGS, Setting, SettingError, Settings, configured, nearest};
use understudy_core::state::ClusterState;
use understudy_core::sync::nobody_can_acknowledge;
use understudy_rpc::error::{Reason, RpcError};
use understudy_rpc::v1;
use understudy_types::shown::shown;
use understudy_types::{Generation, SystemId};

use super::cluster::name_of;
use crate::config::{Origin, SERVER_SETTINGS, ServerConfig};
use crate::view::NodeView;

/// How long a change is tried: over an election of the Raft leader.
const SET_TIMEOUT: Duration = Duration::from_secs(10);
/// A node publishes what it goes by with its beats, at least.
const PUBLISHED_WITHIN: Duration = Duration::from_secs(1);
/// Between two attempts, unless the state moves sooner.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// Names in one request.
const NAMES_MAX: usize = 1_000;
/// Errors that one answer tells: it travels in HTTP/2 headers.
const ERRORS_SHOWN_MAX: usize = 5;

/// Over what the agent publishes, what Raft holds, and what the server was started with.
pub struct SettingsShell {
    view: watch::Receiver<NodeView>,
    control: Control,
    config: Arc<ServerConfig>,
}

impl SettingsShell {
    /// See the module.
    pub fn new(view: watch::Receiver<NodeView>, control: Control, config: Arc<ServerConfig>) -> Self {
        Self { view, control, config }
    }

    fn state(&self) -> ClusterState {
        self.control.state().borrow().state.clone()
    }

    /// All settings, or the one of this name.
    pub async fn show(&self, name: &str) -> Result<v1::ShowSettingsResponse, RpcError> {
        let state = self.state();
        let config = Arc::clone(&self.config);
        // The file is read again, to see what a restart would change.
        let server = tokio::task::spawn_blocking(move || server_rows(&config)).await;
        let server = server.map_err(|_| RpcError::internal("the settings of this server could not be read"))?;
        let mut settings = cluster_rows(&state);
        settings.extend(server);
        if !name.is_empty() {
            settings.retain(|setting| setting.name == name);
            if settings.is_empty() {
                return Err(RpcError::invalid_argument(unknown(name).to_string()));
            }
        }
        let answered_by = match state.members.is_empty() {
            true => self.config.name.to_string(),
            false => name_of(&state, self.view.borrow().me),
        };
        Ok(v1::ShowSettingsResponse { settings, answered_by, generation: state.generation.get() })
    }

    /// Has the cluster's settings changed.
    pub async fn set(&self, request: v1::SetSettingsRequest) -> Result<v1::SetSettingsResponse, RpcError> {
        let changes = changes(request)?;
        let deadline = Instant::now() + SET_TIMEOUT;
        let mut states = self.control.state();
        loop {
            let state = states.borrow_and_update().state.clone();
            if state.system_id == SystemId::default() {
                return Err(RpcError::not_ready("a change of settings", "no cluster has been made yet"));
            }
            let next = configured(&state.settings, &changes).map_err(|errors| refused(&errors))?;
            let command = Command::Configure { generation: state.generation, changes: changes.clone() };
            let why = match self.control.propose(command).await {
                Ok(Outcome::Applied { generation }) => {
                    self.wait_until(generation, deadline).await;
                    return Ok(done(generation, &state, next));
                }
                Ok(Outcome::Rejected { reason: Rejection::BadSettings { errors } }) => return Err(refused(&errors)),
                Ok(Outcome::Rejected { reason }) => reason.to_string(),
                Err(error @ ProposeError::Refused { .. }) => {
                    return Err(RpcError::not_ready("a change of settings", &error.to_string()));
                }
                Err(error) => error.to_string(),
            };
            if Instant::now() + RETRY_INTERVAL >= deadline {
                return Err(RpcError::new(
                    Reason::NotReady,
                    format!(
                        "the settings were not changed, or are not known to be: {why}; look with \"understudy config show\", and try again"
                    ),
                ));
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY_INTERVAL) => {}
                changed = states.changed() => if changed.is_err() {
                    return Err(RpcError::not_ready("a change of settings", "this node stops"));
                },
            }
        }
    }

    /// So that who asks this node next sees what was changed, and is served by it. It stands in Raft whether this node knows or not.
    async fn wait_until(&self, generation: Generation, deadline: Instant) {
        let (mut states, mut view) = (self.control.state(), self.view.clone());
        let applied = states.wait_for(|applied| applied.state.generation >= generation);
        if timeout_at(deadline, applied).await.is_err() {
            tracing::debug!(%generation, "this node has not applied a change of settings yet");
        }
        // While nobody publishes, because the data is being opened for example, nobody is served by it either.
        let published = view.wait_for(|view| view.cluster.generation >= generation);
        if timeout(PUBLISHED_WITHIN, published).await.is_err() {
            tracing::debug!(%generation, "this node does not go by a change of settings yet");
        }
    }
}

/// One text for each name: those that are reset get their defaults.
fn changes(request: v1::SetSettingsRequest) -> Result<BTreeMap<String, String>, RpcError> {
    let v1::SetSettingsRequest { settings, reset } = request;
    if settings.is_empty() && reset.is_empty() {
        return Err(RpcError::invalid_argument("no setting is named; give settings, or names to reset"));
    }
    if settings.len() + reset.len() > NAMES_MAX {
        return Err(RpcError::limit_exceeded("the request", settings.len() + reset.len(), NAMES_MAX, "settings"));
    }
    let mut changes: BTreeMap<String, String> = settings.into_iter().collect();
    for name in reset {
        let setting = Setting::find(&name).map_err(|error| refused(&[error]))?;
        if changes.insert(name, setting.default()).is_some() {
            return Err(RpcError::invalid_argument(format!("{} is both set and reset; do one of them", setting.name)));
        }
    }
    let server = changes.keys().find(|name| SERVER_SETTINGS.iter().any(|setting| setting.name == *name));
    match server {
        Some(name) => Err(RpcError::invalid_argument(format!(
            "{name} is a setting of each server, not of the cluster: change it in the server's file, environment or flags, \
             and start it again"
        ))),
        None => Ok(changes),
    }
}

fn refused(errors: &[SettingError]) -> RpcError {
    let mut all: Vec<String> = errors.iter().take(ERRORS_SHOWN_MAX).map(ToString::to_string).collect();
    if errors.len() > ERRORS_SHOWN_MAX {
        all.push(format!("and {} more", errors.len() - ERRORS_SHOWN_MAX));
    }
    RpcError::invalid_argument(format!("no setting was changed: {}", all.join("; ")))
}

fn unknown(name: &str) -> SettingError {
    let known = SETTINGS.iter().map(|setting| setting.name).chain(SERVER_SETTINGS.iter().map(|setting| setting.name));
    SettingError::Unknown { name: shown(name), nearest: nearest(name, known).map(str::to_owned) }
}

fn done(generation: Generation, before: &ClusterState, settings: Settings) -> v1::SetSettingsResponse {
    let changes = SETTINGS.iter().map(|setting| v1::SettingChange {
        name: setting.name.to_owned(),
        before: setting.get(&before.settings),
        after: setting.get(&settings),
        takes_effect: setting.takes.as_str().to_owned(),
    });
    let changes = changes.filter(|change| change.before != change.after).collect();
    let after = ClusterState { settings, ..before.clone() };
    let warning = nobody_can_acknowledge(&after).map_or_else(String::new, |unsatisfied| unsatisfied.to_string());
    v1::SetSettingsResponse { generation: generation.get(), changes, warning }
}

fn cluster_rows(state: &ClusterState) -> Vec<v1::Setting> {
    let row = |setting: &Setting| {
        let (value, default) = (setting.get(&state.settings), setting.default());
        let origin = if value == default { Origin::Default } else { Origin::Cluster };
        let unsatisfied =
            (setting.name == "synchronous_standby_names").then(|| nobody_can_acknowledge(state)).flatten();
        v1::Setting {
            name: setting.name.to_owned(),
            value,
            default_value: default,
            unit: setting.unit().to_owned(),
            bounds: setting.bounds(),
            origin: origin.to_string(),
            scope: "cluster".to_owned(),
            pending_restart: false,
            takes_effect: setting.takes.as_str().to_owned(),
            doc: setting.doc.to_owned(),
            problem: unsatisfied.map_or_else(String::new, |unsatisfied| unsatisfied.to_string()),
        }
    };
    SETTINGS.iter().map(row).collect()
}

fn server_rows(config: &ServerConfig) -> Vec<v1::Setting> {
    let again = config.read_again();
    let row = |setting: &crate::config::ServerSetting| {
        let value = setting.get(config);
        let (pending_restart, problem) = match &again {
            Ok(again) => (setting.get(again) != value, String::new()),
            // Whichever it is: the server would not start.
            Err(errors) if setting.name == "name" => (false, format!("a restart would fail: {errors}")),
            Err(_) => (false, String::new()),
        };
        v1::Setting {
            name: setting.name.to_owned(),
            value,
            default_value: setting.default.unwrap_or_default().to_owned(),
            unit: setting.kind.as_str().to_owned(),
            bounds: setting.bounds.to_owned(),
            origin: config.origin_of(setting.name).to_string(),
            scope: "server".to_owned(),
            pending_restart,
            takes_effect: understudy_core::settings::Takes::Restart.as_str().to_owned(),
            doc: setting.doc.to_owned(),
            problem,
        }
    };
    SERVER_SETTINGS.iter().map(row).collect()
}
