//! Figures of a source that is given events by requests.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use super::labels::{StatusLabel, Unlabelled};
use crate::seams::Intake;

/// Those of a source that is given events by requests.
#[derive(Default)]
pub(super) struct IntakeFigures {
    requests: Family<StatusLabel, Counter>,
    accepted: Family<Unlabelled, Counter>,
    repeated: Family<Unlabelled, Counter>,
    forgotten: Family<Unlabelled, Counter>,
    pending: Family<Unlabelled, Gauge>,
    oldest: Family<Unlabelled, Gauge<f64, AtomicU64>>,
}

impl IntakeFigures {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "http_requests",
            "requests to the HTTP source by status",
            self.requests.clone(),
        );
        registry.register(
            "http_events_accepted",
            "events that the HTTP source has acknowledged",
            self.accepted.clone(),
        );
        registry.register(
            "http_requests_repeated",
            "requests that the HTTP source had acknowledged before",
            self.repeated.clone(),
        );
        registry.register(
            "http_keys_forgotten",
            "idempotency keys that were forgotten before their time",
            self.forgotten.clone(),
        );
        registry.register_with_unit(
            "http_pending",
            "events acknowledged and not read",
            Unit::Bytes,
            self.pending.clone(),
        );
        registry.register_with_unit(
            "http_oldest_unread",
            "how long the oldest of those has waited",
            Unit::Seconds,
            self.oldest.clone(),
        );
    }

    pub(super) fn take(&self, intake: &Intake) {
        let none = Unlabelled::new();
        let (answers, accepted, repeated) = intake.take_counts();
        for (status, count) in answers {
            let label = StatusLabel {
                status: u32::from(status),
            };
            self.requests.get_or_create(&label).inc_by(count);
        }
        self.accepted.get_or_create(&none).inc_by(accepted);
        self.repeated.get_or_create(&none).inc_by(repeated);
        let levels = intake.levels();
        let forgotten = self.forgotten.get_or_create(&none);
        forgotten.inc_by(levels.forgotten_keys.saturating_sub(forgotten.get()));
        let pending = i64::try_from(levels.pending_bytes).unwrap_or(i64::MAX);
        self.pending.get_or_create(&none).set(pending);
        let oldest = levels.oldest_unread_ms as f64 / 1e3;
        self.oldest.get_or_create(&none).set(oldest);
    }
}
