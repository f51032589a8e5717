//! The timeline shows what it is made for: early, on time and late panes, a late event, merged sessions;
//! for any strategy it is drawn, and it ends.

use calve_model::windows::{Closing, Trigger};

use super::*;

const SECOND: Micros = 1_000_000;
const MINUTE: Micros = 60 * SECOND;

fn drawn(strategy: &Strategy, max_delay: Micros) -> String {
    strategy.check().expect("a strategy that makes sense");
    draw(&Timeline {
        strategy,
        max_delay,
        commit_every: 30 * SECOND,
        min_interval: SECOND,
        late: LateRows::Side,
        late_table: Some("shop.orders_late"),
        aggregate: strategy.accumulation != Accumulation::Discarding,
    })
}

fn hours() -> Strategy {
    let every = Trigger::Period {
        every: 30 * SECOND,
        aligned: false,
    };
    Strategy {
        windowing: Windowing::Fixed {
            size: 60 * MINUTE,
            offset: 0,
        },
        trigger: Trigger::phases(Some(every), Some(Trigger::Count(1))),
        allowed_lateness: 10 * MINUTE,
        ..Strategy::default()
    }
}

#[test]
fn an_hour_has_early_on_time_and_late_panes() {
    let text = drawn(&hours(), 10 * SECOND);
    for part in [
        // The two events of the first half minute are in one pane.
        "  >  pane 0 of [12:00:00, 13:00:00), early: 2 new rows\n12:06:31  #  1 pane visible",
        "  >  pane 1 of [12:00:00, 13:00:00), on time: 1 new row\n",
        "  >  pane 2 of [12:00:00, 13:00:00), late: 1 new row\n",
        "  x  [12:00:00, 13:00:00)\n",
        "  !  1 event of 12:42:00: [12:00:00, 13:00:00) has closed; to shop.orders_late\n",
        "  #  1 late row visible",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
}

#[test]
fn without_early_firings_a_window_is_one_pane() {
    let text = drawn(
        &Strategy {
            windowing: hours().windowing,
            ..Strategy::default()
        },
        0,
    );
    assert!(
        text.contains("pane 0 of [12:00:00, 13:00:00), on time: 3 new rows; the last"),
        "{text}"
    );
    assert!(!text.contains("early"), "{text}");
    assert!(text.contains("rows of open windows are durable"), "{text}");
}

#[test]
fn what_a_trigger_counts_comes() {
    let text = drawn(
        &Strategy {
            trigger: Trigger::phases(Some(Trigger::Count(1000)), None),
            ..hours()
        },
        0,
    );
    assert!(text.contains("early: 1000 new rows"), "{text}");
}

#[test]
fn sessions_merge_and_take_panes_back() {
    let text = drawn(
        &Strategy {
            windowing: Windowing::Session { gap: 10 * MINUTE },
            accumulation: Accumulation::Retracting,
            ..hours()
        },
        0,
    );
    for part in [
        "  ~  [12:00:00, 12:15:00) and [12:22:00, 12:32:00) become [12:00:00, 12:32:00)",
        "  <  pane 1 of [12:00:00, 12:15:00) is taken back",
        "  <  pane 0 of [12:22:00, 12:32:00) is taken back",
        "  !  1 event",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
}

#[test]
fn the_global_window_fires_by_its_trigger_and_at_the_end() {
    let strategy = Strategy {
        trigger: Trigger::Count(10).repeated(),
        ..Strategy::default()
    };
    let text = drawn(&strategy, 0);
    assert!(
        text.contains("pane 0 of the global window, early: 10 new rows"),
        "{text}"
    );
    assert!(
        text.contains("pane 1 of the global window, on time: 1 new row; the last"),
        "{text}"
    );
    assert!(
        !text.contains("of 12:00"),
        "event time does not matter: {text}"
    );
}

fn triggers() -> Vec<Trigger> {
    let period = |every, aligned| Trigger::Period { every, aligned };
    vec![
        Trigger::default(),
        Trigger::AtWatermark,
        period(7, false).repeated(),
        period(MINUTE, true).repeated(),
        Trigger::Count(1000).repeated(),
        Trigger::Any(vec![Trigger::Bytes(1 << 20), period(3 * MINUTE, false)]).repeated(),
        Trigger::Sequence(vec![Trigger::Count(3), Trigger::AtWatermark]),
        Trigger::phases(Some(period(MINUTE, true)), Some(Trigger::Count(2))),
        Trigger::phases(None, None),
    ]
}

fn windowings() -> Vec<Windowing> {
    let mut all = vec![Windowing::Global];
    for size in [1, 5 * SECOND, 60 * MINUTE, 30 * DAY] {
        all.push(Windowing::Fixed { size, offset: 7 });
        all.push(Windowing::Session { gap: size });
        let period = size / 5 + 1;
        if period <= size {
            all.push(Windowing::Sliding {
                size,
                period,
                offset: 0,
            });
        }
    }
    all
}

#[test]
fn any_strategy_is_drawn() {
    let lengths = [0, 1, 10 * SECOND, 2 * DAY];
    for windowing in windowings() {
        for trigger in triggers() {
            for (n, allowed_lateness) in lengths.into_iter().enumerate() {
                let strategy = Strategy {
                    windowing: windowing.clone(),
                    trigger: trigger.clone(),
                    allowed_lateness,
                    accumulation: [Accumulation::Discarding, Accumulation::Retracting][n % 2],
                    closing: [Closing::FireIfNonEmpty, Closing::FireAlways][n / 2],
                    empty_on_time: n == 3,
                };
                for max_delay in lengths {
                    let text = drawn(&strategy, max_delay);
                    let of = format!("{strategy} {max_delay}\n{text}");
                    assert!(text.contains("  >  pane 0 of "), "something fires: {of}");
                    assert!(text.contains("  #  "), "something is committed: {of}");
                    assert!(text.lines().count() < 200, "{of}");
                    assert!(text.is_ascii(), "{of}");
                }
            }
        }
    }
}
