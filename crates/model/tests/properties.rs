//! What holds for any history under any strategy. The caller in `common` checks on the way that
//! effects fit the contents it keeps: merges and closings of open windows only, counts of panes,
//! retractions of what stands, restores that equal what was saved.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use calve_model::Micros;
use calve_model::watermark::END_OF_TIME;
use calve_model::windows::{
    Accumulation, Closing, PaneInfo, Panes, Strategy as Windows, Timing, Trigger, Window, Windowing,
};
use common::{Caller, Element, Key, Out};
use proptest::collection::vec;
use proptest::prelude::*;

/// At least a thousand cases; more by `PROPTEST_CASES`. A failure prints its shortest case.
fn config() -> ProptestConfig {
    let config = ProptestConfig::default();
    ProptestConfig {
        cases: config.cases.max(1000),
        failure_persistence: None,
        ..config
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Keys and event times.
    Batch(Vec<(bool, Micros)>),
    /// The watermark rises by so much.
    Watermark(Micros),
    /// Processing time passes.
    Tick(Micros),
}

fn windowings() -> impl Strategy<Value = Windowing> {
    prop_oneof![
        1 => Just(Windowing::Global),
        3 => (5i64..25, 0i64..9).prop_map(|(size, offset)| Windowing::Fixed { size, offset }),
        2 => (4i64..10, 0i64..15, 0i64..9).prop_map(|(period, more, offset)| Windowing::Sliding {
            size: period + more,
            period,
            offset,
        }),
        5 => (1i64..12).prop_map(|gap| Windowing::Session { gap }),
    ]
}

fn triggers() -> impl Strategy<Value = Trigger> {
    let leaf = prop_oneof![
        Just(Trigger::AtWatermark),
        (1i64..30, any::<bool>()).prop_map(|(every, aligned)| Trigger::Period { every, aligned }),
        (1u64..5).prop_map(Trigger::Count),
        (1u64..100).prop_map(Trigger::Bytes),
    ];
    let tree = leaf.prop_recursive(3, 12, 3, |part| {
        let optional = proptest::option::of(part.clone());
        prop_oneof![
            vec(part.clone(), 1..4).prop_map(Trigger::All),
            vec(part.clone(), 1..4).prop_map(Trigger::Any),
            vec(part.clone(), 1..4).prop_map(Trigger::Sequence),
            part.clone().prop_map(Trigger::repeated),
            (part.clone(), part).prop_map(|(repeat, until)| Trigger::Until {
                repeat: Box::new(repeat),
                until: Box::new(until),
            }),
            (optional.clone(), optional).prop_map(|(early, late)| Trigger::phases(early, late)),
        ]
    });
    prop_oneof![
        1 => Just(Trigger::default()),
        4 => tree,
    ]
}

fn strategies(accumulation: &'static [Accumulation]) -> impl Strategy<Value = Windows> {
    let closings = prop_oneof![
        3 => Just(Closing::FireIfNonEmpty),
        1 => Just(Closing::FireAlways),
    ];
    let lateness = prop_oneof![Just(0i64), 1i64..40];
    (
        windowings(),
        triggers(),
        lateness,
        proptest::sample::select(accumulation),
        closings,
        proptest::bool::weighted(0.3),
    )
        .prop_map(
            |(windowing, trigger, allowed_lateness, accumulation, closing, empty_on_time)| {
                Windows {
                    windowing,
                    trigger,
                    allowed_lateness,
                    accumulation,
                    closing,
                    empty_on_time,
                }
            },
        )
        .prop_filter("makes sense", |strategy| strategy.check().is_ok())
}

const ALL: &[Accumulation] = &[
    Accumulation::Discarding,
    Accumulation::Accumulating,
    Accumulation::Retracting,
];

fn histories() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => vec((any::<bool>(), 0i64..70), 1..5).prop_map(Step::Batch),
        2 => (0i64..15).prop_map(Step::Watermark),
        2 => (0i64..30).prop_map(Step::Tick),
    ];
    vec(step, 0..40)
}

/// Elements that differ, each by a value of its own.
fn elements(keys_and_times: &[(bool, Micros)], next: &mut i64) -> Vec<Element> {
    keys_and_times
        .iter()
        .map(|(key, at)| {
            *next += 1;
            Element {
                key: if *key { "a" } else { "b" }.into(),
                at: *at,
                value: *next,
            }
        })
        .collect()
}

/// What happened, with the watermark at the time.
fn play(strategy: &Windows, history: &[Step], restarts: bool) -> Caller {
    let mut caller = Caller::new(strategy.clone());
    caller.restarts = restarts;
    let (mut now, mut watermark, mut next) = (0, -20, 0);
    for step in history {
        now += 1;
        match step {
            Step::Batch(of) => caller.batch(now, &elements(of, &mut next)),
            Step::Watermark(by) => {
                watermark += by;
                caller.watermark(now, watermark);
            }
            Step::Tick(by) => {
                now += by;
                caller.tick(now);
            }
        }
    }
    caller.drain(now + 1);
    caller
}

fn all_elements(history: &[Step]) -> Vec<Element> {
    let mut next = 0;
    let batches = history.iter().filter_map(|step| match step {
        Step::Batch(of) => Some(elements(of, &mut next)),
        _ => None,
    });
    batches.flatten().collect()
}

/// The windows and their elements as they are when all is known: what a batch job would say.
fn batch_result(
    windowing: &Windowing,
    elements: &[Element],
) -> BTreeMap<(Key, Window), Vec<Element>> {
    let mut result: BTreeMap<(Key, Window), Vec<Element>> = BTreeMap::new();
    if let Windowing::Session { gap } = windowing {
        let mut by_time = elements.to_vec();
        by_time.sort_by_key(|e| (e.key.clone(), e.at));
        let mut open: Option<(Key, Window, Vec<Element>)> = None;
        for element in by_time {
            let (key, end) = (element.key.clone(), element.at + gap);
            match &mut open {
                Some((of, window, inside)) if *of == key && element.at < window.end => {
                    window.end = end;
                    inside.push(element);
                }
                _ => {
                    let new = (key, Window::new(element.at, end), vec![element]);
                    if let Some((key, window, inside)) = open.replace(new) {
                        result.insert((key, window), inside);
                    }
                }
            }
        }
        if let Some((key, window, inside)) = open {
            result.insert((key, window), inside);
        }
    } else {
        for element in elements {
            let mut windows = Vec::new();
            windowing.assign(element.at, &mut windows);
            for window in windows {
                let place = (element.key.clone(), window);
                result.entry(place).or_default().push(element.clone());
            }
        }
    }
    for inside in result.values_mut() {
        inside.sort();
    }
    result
}

/// The last pane of each window that closed (not of those that were absorbed).
fn final_panes(caller: &Caller) -> BTreeMap<(Key, Window), Vec<Element>> {
    let mut last = BTreeMap::new();
    let mut closed = BTreeSet::new();
    for (_, out) in &caller.out {
        match out {
            Out::Fire(key, window, _, inside) => {
                last.insert((key.clone(), *window), inside.clone());
            }
            Out::Close(key, window) => {
                closed.insert((key.clone(), *window));
            }
            _ => {}
        }
    }
    last.retain(|place, _| closed.contains(place));
    last
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn panes_of_a_window_are_early_then_on_time_then_late(
        strategy in strategies(ALL), history in histories(),
    ) {
        let caller = play(&strategy, &history, false);
        let mut panes: BTreeMap<(Key, Window), Vec<PaneInfo>> = BTreeMap::new();
        let mut closed = BTreeSet::new();
        for (_, out) in &caller.out {
            match out {
                Out::Fire(key, window, pane, _) => {
                    let place = (key.clone(), *window);
                    prop_assert!(!closed.contains(&place), "fires after it closed: {place:?}");
                    panes.entry(place).or_default().push(*pane);
                }
                Out::Close(key, window) => {
                    let new = closed.insert((key.clone(), *window));
                    prop_assert!(new, "closes twice: {key} {window}");
                }
                _ => {}
            }
        }
        for (place, panes) in panes {
            let merges = strategy.windowing.merges();
            prop_assert!(merges || panes[0].index == 0, "{place:?}");
            for (before, after) in panes.iter().zip(&panes[1..]) {
                prop_assert!(before.timing <= after.timing, "{place:?} {panes:?}");
                prop_assert_eq!(before.index + 1, after.index);
                prop_assert!(!before.last, "{place:?} {panes:?}");
                if let (Some(before), Some(after)) = (before.on_time_index, after.on_time_index) {
                    prop_assert_eq!(before + 1, after);
                }
            }
            for pane in &panes {
                prop_assert_eq!(pane.first, pane.index == 0);
                prop_assert_eq!(pane.on_time_index.is_none(), pane.timing == Timing::Early);
            }
            let on_time = panes.iter().filter(|pane| pane.timing == Timing::OnTime);
            prop_assert!(on_time.count() <= 1, "{place:?} {panes:?}");
            if strategy.closing == Closing::FireAlways && closed.contains(&place) {
                prop_assert!(panes.iter().any(|pane| pane.last), "{place:?} {panes:?}");
            }
            if strategy.closing == Closing::FireIfNonEmpty && !strategy.empty_on_time {
                prop_assert!(panes.iter().all(|pane| pane.count > 0));
            }
        }
    }

    #[test]
    fn panes_are_early_while_the_watermark_is_below_the_end(
        strategy in strategies(ALL), history in histories(),
    ) {
        // The watermark passes all ends before anything is drained, one by one.
        let mut history = history;
        history.extend((0..60).map(|_| Step::Watermark(4)));
        let mut caller = Caller::new(strategy.clone());
        let (mut now, mut watermark, mut next, mut seen) = (0, None, 0, 0);
        for step in &history {
            now += 1;
            let complete = caller.panes.complete_below();
            match step {
                Step::Batch(of) => caller.batch(now, &elements(of, &mut next)),
                Step::Watermark(by) => {
                    let to = watermark.unwrap_or(-20) + by;
                    watermark = Some(to);
                    caller.watermark(now, to);
                }
                Step::Tick(by) => {
                    now += by;
                    caller.tick(now);
                }
            }
            for (_, out) in &caller.out[seen..] {
                match out {
                    Out::Fire(_, window, pane, inside) => {
                        let passed = watermark.is_some_and(|mark| window.end <= mark);
                        prop_assert_eq!(pane.timing != Timing::Early, passed);
                        // What was complete before this step fires no more.
                        let Some(complete) = complete else { continue };
                        prop_assert!(window.end > complete, "{window} complete={complete}");
                        if !strategy.windowing.merges() {
                            prop_assert!(inside.iter().all(|element| element.at >= complete));
                        }
                    }
                    Out::Close(_, window) => {
                        let over = window.end.saturating_add(strategy.allowed_lateness);
                        prop_assert!(watermark.is_some_and(|mark| over <= mark));
                    }
                    Out::Late(element) => {
                        let mut own = Vec::new();
                        strategy.windowing.assign(element.at, &mut own);
                        let over = own[0].end.saturating_add(strategy.allowed_lateness);
                        prop_assert!(watermark.is_some_and(|mark| over <= mark));
                    }
                    _ => {}
                }
            }
            seen = caller.out.len();
            prop_assert!(caller.panes.complete_below() >= complete);
            for (_, open) in caller.panes.windows() {
                let over = open.window.end.saturating_add(strategy.allowed_lateness);
                prop_assert!(watermark.is_none_or(|mark| over > mark), "still open");
                let passed = watermark.is_some_and(|mark| open.window.end <= mark);
                prop_assert_eq!(open.passed, passed);
            }
        }
        if strategy.windowing != Windowing::Global {
            prop_assert_eq!(caller.panes.open(), 0, "the watermark closes all");
        }
    }

    #[test]
    fn discarding_puts_each_element_in_one_pane_or_late(
        strategy in strategies(&[Accumulation::Discarding]), history in histories(),
    ) {
        let caller = play(&strategy, &history, false);
        let mut came: Vec<Element> = Vec::new();
        for (_, out) in &caller.out {
            match out {
                Out::Fire(_, _, _, inside) => came.extend_from_slice(inside),
                Out::Late(element) => came.push(element.clone()),
                _ => {}
            }
        }
        let mut expected = Vec::new();
        for element in all_elements(&history) {
            let mut windows = Vec::new();
            strategy.windowing.assign(element.at, &mut windows);
            expected.extend(windows.iter().map(|_| element.clone()));
        }
        came.sort();
        expected.sort();
        prop_assert_eq!(came, expected);
    }

    #[test]
    fn restarts_change_nothing(strategy in strategies(ALL), history in histories()) {
        let one = play(&strategy, &history, false);
        let other = play(&strategy, &history, true);
        prop_assert_eq!(&one.out, &other.out);
    }

    #[test]
    fn another_trigger_and_lateness_after_a_restart_lose_nothing(
        strategy in strategies(&[Accumulation::Discarding]),
        then in strategies(&[Accumulation::Discarding]),
        history in histories(),
        at in any::<prop::sample::Index>(),
    ) {
        let then = Windows { windowing: strategy.windowing.clone(), ..then };
        let mut caller = Caller::new(strategy.clone());
        let (mut now, mut watermark, mut next) = (0, -20, 0);
        let restart = at.index(history.len() + 1);
        for (at, step) in history.iter().enumerate() {
            now += 1;
            if at == restart {
                let complete = caller.panes.complete_below();
                caller.panes = Panes::restore(then.clone(), caller.panes.save());
                prop_assert_eq!(caller.panes.complete_below(), complete);
            }
            match step {
                Step::Batch(of) => caller.batch(now, &elements(of, &mut next)),
                Step::Watermark(by) => {
                    watermark += by;
                    caller.watermark(now, watermark);
                }
                Step::Tick(by) => {
                    now += by;
                    caller.tick(now);
                }
            }
        }
        caller.drain(now + 1);
        let mut came: Vec<Element> = Vec::new();
        let mut panes: BTreeMap<(Key, Window), PaneInfo> = BTreeMap::new();
        let mut closed = BTreeSet::new();
        for (_, out) in &caller.out {
            match out {
                Out::Fire(key, window, pane, inside) => {
                    came.extend_from_slice(inside);
                    let place = (key.clone(), *window);
                    prop_assert!(!closed.contains(&place), "fires after it closed");
                    if let Some(before) = panes.insert(place, *pane) {
                        prop_assert_eq!(before.index + 1, pane.index);
                        prop_assert!(before.timing <= pane.timing);
                    }
                }
                Out::Late(element) => came.push(element.clone()),
                Out::Close(key, window) => {
                    prop_assert!(closed.insert((key.clone(), *window)), "closes twice");
                }
                _ => {}
            }
        }
        let mut expected = Vec::new();
        for element in all_elements(&history) {
            let mut windows = Vec::new();
            strategy.windowing.assign(element.at, &mut windows);
            expected.extend(windows.iter().map(|_| element.clone()));
        }
        came.sort();
        expected.sort();
        prop_assert_eq!(came, expected);
    }

    #[test]
    fn the_final_accumulating_result_is_the_batch_result_in_any_order(
        strategy in strategies(&[Accumulation::Accumulating, Accumulation::Retracting]),
        history in histories(),
        shuffled in any::<prop::sample::Index>(),
        spans in any::<bool>(),
    ) {
        let mut strategy = strategy;
        strategy.allowed_lateness = END_OF_TIME;
        let all = all_elements(&history);
        let expected = batch_result(&strategy.windowing, &all);
        let caller = play(&strategy, &history, false);
        prop_assert_eq!(&final_panes(&caller), &expected);

        // The same elements in another order, with the history's watermarks and ticks.
        let mut order: Vec<usize> = (0..all.len()).collect();
        let mut seed = shuffled.index(usize::MAX);
        for at in (1..order.len()).rev() {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            order.swap(at, (seed >> 33) % (at + 1));
        }
        let mut order = order.into_iter();
        let mut other = Caller::new(strategy.clone());
        other.spans = spans;
        let mut watermark = -20;
        for (now, step) in (0..).step_by(7).zip(&history) {
            match step {
                Step::Batch(of) => {
                    let batch = order.by_ref().take(of.len());
                    let batch: Vec<Element> = batch.map(|at| all[at].clone()).collect();
                    other.batch(now, &batch);
                }
                Step::Watermark(by) => {
                    watermark += by;
                    other.watermark(now, watermark);
                }
                Step::Tick(_) => other.tick(now),
            }
        }
        other.drain(i64::MAX);
        prop_assert_eq!(&final_panes(&other), &expected);
    }

    #[test]
    fn what_retracting_leaves_is_the_final_result(
        strategy in strategies(&[Accumulation::Retracting]), history in histories(),
    ) {
        let caller = play(&strategy, &history, false);
        let mut balance: BTreeMap<(Key, Window, Element), i64> = BTreeMap::new();
        let mut late = BTreeSet::new();
        // Panes that stand, by key and window; what a merged window must take back before it fires.
        let mut standing: BTreeSet<(Key, Window)> = BTreeSet::new();
        let mut closed: BTreeSet<(Key, Window)> = BTreeSet::new();
        for (_, out) in &caller.out {
            match out {
                Out::Fire(key, window, _, inside) => {
                    let absorbed = standing.difference(&closed).find(|(of, old)| {
                        strategy.windowing.merges() && of == key && old.overlaps(window)
                    });
                    prop_assert_eq!(absorbed, None, "stands as {} {} fires", key, window);
                    standing.insert((key.clone(), *window));
                    for element in inside {
                        *balance.entry((key.clone(), *window, element.clone())).or_default() += 1;
                    }
                }
                Out::Retract(key, window, _, inside) => {
                    prop_assert!(standing.remove(&(key.clone(), *window)), "{key} {window}");
                    for element in inside {
                        *balance.entry((key.clone(), *window, element.clone())).or_default() -= 1;
                    }
                }
                Out::Late(element) => {
                    late.insert(element.clone());
                }
                Out::Close(key, window) => {
                    closed.insert((key.clone(), *window));
                }
                Out::Merge(..) => {}
            }
        }
        balance.retain(|_, count| *count != 0);
        prop_assert!(balance.values().all(|count| *count == 1));
        let mut left: BTreeMap<(Key, Window), Vec<Element>> = BTreeMap::new();
        for (key, window, element) in balance.into_keys() {
            left.entry((key, window)).or_default().push(element);
        }
        prop_assert_eq!(&left, &final_panes(&caller).into_iter().filter(|(_, inside)| !inside.is_empty()).collect());
        if strategy.windowing.merges() {
            let mut all: Vec<Element> = left.into_values().flatten().chain(late).collect();
            all.sort();
            let mut expected = all_elements(&history);
            expected.sort();
            prop_assert_eq!(all, expected, "each element stands once, or is late");
        }
    }

    #[test]
    fn open_sessions_of_a_key_never_overlap(
        gap in 1i64..12, trigger in triggers(), lateness in 0i64..40, history in histories(),
    ) {
        let strategy = Windows {
            windowing: Windowing::Session { gap },
            trigger,
            allowed_lateness: lateness,
            ..Windows::default()
        };
        prop_assume!(strategy.check().is_ok());
        let mut caller = Caller::new(strategy);
        let (mut now, mut watermark, mut next) = (0, -20, 0);
        for step in &history {
            now += 1;
            match step {
                Step::Batch(of) => caller.batch(now, &elements(of, &mut next)),
                Step::Watermark(by) => {
                    watermark += by;
                    caller.watermark(now, watermark);
                }
                Step::Tick(by) => {
                    now += by;
                    caller.tick(now);
                }
            }
            let open: Vec<_> = caller.panes.windows().map(|(key, open)| (key, open.window)).collect();
            for (at, (key, window)) in open.iter().enumerate() {
                for (other_key, other) in &open[at + 1..] {
                    prop_assert!(key != other_key || !window.overlaps(other));
                }
            }
        }
    }
}
