//! The cluster's settings at work on this node: when Raft's state says that one is another, those whom it concerns are told.
//!
//! Some need no telling, because whoever uses them reads the cluster state each time: the planner and the suspicion
//! (`primary_timeout`, `max_lag_on_failover`), the promotion and the sync list (`synchronous_standby_names`,
//! `sync_mode`), the services (`commit_deadline`, `default_durability`).

use std::time::Duration;

use understudy_core::settings::{SETTINGS, Settings};
use understudy_engine::RetentionSettings;
use understudy_replication::{ReceiverTiming, SenderSettings};

use super::Agent;

impl Agent {
    /// Called with every cluster state, the first one too.
    pub(super) fn learn_settings(&mut self) {
        let new = &self.cluster.settings;
        if self.settings.as_ref() == Some(new) {
            return;
        }
        if let Some(old) = &self.settings {
            for setting in SETTINGS.iter().filter(|setting| setting.get(old) != setting.get(new)) {
                let (before, after) = (setting.get(old), setting.get(new));
                tracing::info!(
                    name = setting.name,
                    before,
                    after,
                    takes_effect = setting.takes.as_str(),
                    "a setting was changed"
                );
            }
        }
        if let Some(unsatisfied) = understudy_core::sync::nobody_can_acknowledge(&self.cluster) {
            tracing::warn!(rule = %new.synchronous_standby_names, "{unsatisfied}");
        }
        self.apply_settings(new);
        self.settings = Some(new.clone());
    }

    /// Tells everybody who does not read the cluster state himself. One line for each that there is.
    fn apply_settings(&self, settings: &Settings) {
        self.confirmer.set_primary_timeout(Duration::from_millis(settings.primary_timeout_ms));
        self.confirmer.set_lease(settings.wanted_lease_ms(), settings.lease_drift_margin_percent);
        self.standing.send_modify(|standing| standing.grants.want(settings.wanted_lease_ms()));
        self.upstream.set_sender_settings(sender_settings(settings));
        let timing = receiver_timing(settings);
        self.receiver_timing.send_if_modified(|present| std::mem::replace(present, timing) != timing);
        self.engine.set_retention(retention(settings));
        self.engine.set_history_retention(Duration::from_millis(settings.history_retention_ms));
        self.engine.set_request_id_retention(Duration::from_millis(settings.request_id_retention_ms));
    }
}

fn retention(settings: &Settings) -> RetentionSettings {
    RetentionSettings {
        wal_keep_size_bytes: settings.wal_keep_size_bytes,
        max_wal_size_bytes: settings.max_wal_size_bytes,
        checkpoint_timeout: Duration::from_millis(settings.checkpoint_timeout_ms),
    }
}

fn sender_settings(settings: &Settings) -> SenderSettings {
    SenderSettings {
        timeout_ms: settings.wal_sender_timeout_ms,
        senders_max: usize::try_from(settings.max_wal_senders).unwrap_or(usize::MAX),
    }
}

fn receiver_timing(settings: &Settings) -> ReceiverTiming {
    ReceiverTiming {
        timeout_ms: settings.wal_receiver_timeout_ms,
        status_interval_ms: settings.wal_receiver_status_interval_ms,
        ..ReceiverTiming::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_of_the_cluster_are_those_of_the_parts() {
        assert_eq!(sender_settings(&Settings::default()), SenderSettings::default());
        assert_eq!(receiver_timing(&Settings::default()), ReceiverTiming::default());
        assert_eq!(retention(&Settings::default()), RetentionSettings::default());
    }
}
