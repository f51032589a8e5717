//! Series of the stages' shares.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use super::{
    labels::StageLabel,
    shares::{FlowStage, Look},
};

type Seconds = Family<StageLabel, Counter<f64, AtomicU64>>;
type Ratios = Family<StageLabel, Gauge<f64, AtomicU64>>;

/// Busy, starved and blocked, each.
#[derive(Default)]
pub(super) struct FlowSeries {
    seconds: [Seconds; 3],
    ratios: [Ratios; 3],
    bottleneck: Family<StageLabel, Gauge>,
}

const BUSY: &str = "a stage worked, or waited for an outside system that did";
const STARVED: &str = "a stage waited for input";
const BLOCKED: &str = "a stage waited for what comes behind it";

impl FlowSeries {
    pub(super) fn register(&self, registry: &mut Registry) {
        let [busy, starved, blocked] = &self.seconds;
        for (name, help, series) in [
            ("stage_busy", BUSY, busy),
            ("stage_starved", STARVED, starved),
            ("stage_blocked", BLOCKED, blocked),
        ] {
            let help = format!("time in which {help}; of batchers the mean of their threads");
            registry.register_with_unit(name, help, Unit::Seconds, series.clone());
        }
        let [busy, starved, blocked] = &self.ratios;
        for (name, help, series) in [
            ("stage_busy", BUSY, busy),
            ("stage_starved", STARVED, starved),
            ("stage_blocked", BLOCKED, blocked),
        ] {
            let help = format!("share of the last ten seconds in which {help}");
            registry.register_with_unit(
                name,
                help,
                Unit::Other("ratio".to_owned()),
                series.clone(),
            );
        }
        registry.register(
            "bottleneck",
            "1: the stage that the others wait for",
            self.bottleneck.clone(),
        );
    }

    /// Takes over what is known now.
    pub(super) fn show(&self, look: &Look) {
        for (number, stage) in FlowStage::ALL.into_iter().enumerate() {
            let label = StageLabel {
                stage: stage.name(),
            };
            for condition in 0..3 {
                let spent = look.spent[number].0[condition].as_secs_f64();
                let seconds = self.seconds[condition].get_or_create(&label);
                // An older look may come later.
                seconds.inc_by((spent - seconds.get()).max(0.0));
                let ratio = self.ratios[condition].get_or_create(&label);
                ratio.set(look.shares[number][condition]);
            }
            let is = look.bottleneck == Some(stage);
            self.bottleneck.get_or_create(&label).set(is.into());
        }
    }
}
