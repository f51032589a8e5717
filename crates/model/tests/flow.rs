//! The controller against every fixed setting, in worlds that change.

#[path = "common/flow.rs"]
mod world;

use calve_model::flow::{Controller, Fact, Goal};
use proptest::prelude::*;
use world::{Policy, WORLDS, run, searched, settings};

#[test]
fn within_a_tenth_of_the_best_fixed_setting_and_better_than_any_over_all() {
    let mut over_all = vec![0.0; settings().len()];
    let mut ours = 0.0;
    let mut misses = Vec::new();
    for world in WORLDS {
        let costs = searched(world);
        let least = costs.iter().copied().fold(f64::INFINITY, f64::min);
        for (sum, cost) in over_all.iter_mut().zip(&costs) {
            *sum += cost / least;
        }
        let found = run(world, Policy::controlled(world));
        let ratio = found.cost() / least;
        ours += ratio;
        println!("{}: {ratio:.3} times the best fixed setting", world.name);
        if ratio > 1.1 {
            misses.push((world.name, ratio));
        }
    }
    let least = over_all.iter().copied().fold(f64::INFINITY, f64::min);
    println!("all together: {ours:.3}, the best one fixed setting {least:.3}");
    assert_eq!(
        misses,
        [],
        "worse than a fixed setting by more than a tenth"
    );
    assert!(
        ours < least,
        "one fixed setting does: {least:.3} against {ours:.3}"
    );
}

#[test]
fn it_does_not_oscillate() {
    for world in WORLDS.iter().filter(|world| world.is_steady()) {
        let trace = run(world, Policy::controlled(world)).trace;
        // Half of the time to find its way.
        let late = &trace[trace.len() / 2..];
        let every: Vec<f64> = late
            .iter()
            .map(|point| point.sizes.commit_every as f64 / 1e6)
            .collect();
        let (least, most) = every
            .iter()
            .fold((f64::INFINITY, 0.0_f64), |(least, most), e| {
                (least.min(*e), most.max(*e))
            });
        assert!(most < 1.3 * least, "{}: {least} to {most} s", world.name);
        let steps = late
            .windows(2)
            .filter(|pair| pair[0].sizes.files_in_flight != pair[1].sizes.files_in_flight);
        assert!(steps.count() <= 2, "{}", world.name);
    }
}

#[test]
fn memory_that_runs_out_makes_batches_small() {
    let goal = Goal {
        freshness: 10_000_000,
        memory: 64 << 20,
        batch: 2 << 20,
    };
    let mut controller = Controller::new(goal);
    for _ in 0..2_000 {
        let rows = controller.sizes().batch_rows;
        controller.see(Fact::Batch {
            rows,
            bytes: rows * 1_000,
            cost: 300 + rows as i64 / 2,
            age: 1_000,
            wanted: Some(rows),
        });
        let bytes = controller.sizes().batch_rows * 1_000;
        assert!(bytes <= goal.batch, "{bytes}");
    }
    let before = controller.sizes().batch_rows;
    for _ in 0..3 {
        controller.see(Fact::Held(goal.memory / 100 * 95));
    }
    assert_eq!(controller.sizes().batch_rows, (before / 8).max(250));
    for _ in 0..3 {
        controller.see(Fact::Held(goal.memory / 2));
    }
    assert_eq!(controller.sizes().batch_rows, before);
}

/// Batches that were read before a trial began arrive while it lasts, and say nothing of it.
#[test]
fn a_trial_is_judged_by_its_own_batches() {
    let goal = Goal {
        freshness: 10_000_000,
        memory: 1 << 30,
        batch: 32 << 20,
    };
    let batch = |rows: u64, cost: i64| Fact::Batch {
        rows,
        bytes: rows * 100,
        cost,
        age: 1_000,
        wanted: Some(rows),
    };
    let mut controller = Controller::new(goal);
    let mut under_way = std::collections::VecDeque::new();
    for _ in 0..4_000 {
        under_way.push_back(controller.sizes().batch_rows);
        if under_way.len() > 8 {
            let rows = under_way.pop_front().expect("a batch");
            // Dear by the batch: the larger, the better.
            controller.see(batch(rows, 4_000 + rows as i64 / 10));
        }
    }
    let found = controller.sizes().batch_rows;
    assert!(found >= 128_000, "{found}");
    for _ in 0..1_000 {
        controller.see(batch(found / 2, 1));
    }
    assert_eq!(controller.sizes().batch_rows, found);
}

fn fact() -> impl Strategy<Value = Fact> {
    let time = 0i64..100_000_000;
    prop_oneof![
        (
            0u64..1_000_000,
            0u64..1 << 30,
            time.clone(),
            time.clone(),
            proptest::option::of(0u64..1_000_000)
        )
            .prop_map(|(rows, bytes, cost, age, wanted)| Fact::Batch {
                rows,
                bytes,
                cost,
                age,
                wanted
            }),
        (0u64..5_000, time.clone(), time.clone()).prop_map(|(files, waited, took)| {
            Fact::Prepared {
                files,
                waited,
                took,
            }
        }),
        (time.clone(), time).prop_map(|(waited, took)| Fact::Committed { waited, took }),
        (0u64..1 << 31).prop_map(Fact::Held),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_sizes_are_sane(
        freshness in 1_000i64..3_600_000_000,
        facts in prop::collection::vec(fact(), 0..200),
    ) {
        let mut controller = Controller::new(Goal { freshness, memory: 1 << 30, batch: 1 << 25 });
        for fact in facts {
            controller.see(fact);
            let sizes = controller.sizes();
            prop_assert!((250..=512_000).contains(&sizes.batch_rows), "{sizes:?}");
            prop_assert!((1..=64).contains(&sizes.files_in_flight), "{sizes:?}");
            prop_assert!(sizes.commit_every >= freshness / 21, "{sizes:?}");
            prop_assert!(sizes.commit_every <= freshness.max(170_000_000), "{sizes:?}");
        }
    }
}
