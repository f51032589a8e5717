//! Triggers against a second, plain implementation: a tree of nodes for each window, all windows
//! looked at in each step. For windows that do not merge, and any trigger and history.

use std::collections::BTreeMap;

use calve_model::Micros;
use calve_model::windows::{
    Effect, Panes, Placement, Seen, Strategy as Windows, Timing, Trigger, Window, Windowing,
};
use proptest::collection::vec;
use proptest::prelude::*;

#[derive(Debug)]
struct Node {
    of: Trigger,
    kids: Vec<Node>,
    finished: bool,
    counted: u64,
    ends: Option<Micros>,
    over: bool,
    late: bool,
}

impl Node {
    fn new(of: &Trigger) -> Self {
        let kids: Vec<&Trigger> = match of {
            Trigger::All(kids) | Trigger::Any(kids) | Trigger::Sequence(kids) => {
                kids.iter().collect()
            }
            Trigger::Repeat(kid) => vec![&**kid],
            Trigger::Until { repeat, until } => vec![&**repeat, &**until],
            Trigger::Phases { early, late } => {
                // One that never fires stands for none.
                let never = &Trigger::Count(u64::MAX);
                let or_never = |kid: &'_ Option<Box<Trigger>>| match kid {
                    Some(kid) => Node::new(kid),
                    None => Node::new(never),
                };
                return Self {
                    kids: vec![or_never(early), or_never(late)],
                    ..Self::leaf(of)
                };
            }
            _ => vec![],
        };
        Self {
            kids: kids.into_iter().map(Node::new).collect(),
            ..Self::leaf(of)
        }
    }

    fn leaf(of: &Trigger) -> Self {
        Self {
            of: of.clone(),
            kids: vec![],
            finished: false,
            counted: 0,
            ends: None,
            over: false,
            late: false,
        }
    }

    fn renew(&mut self) {
        *self = Node::new(&self.of);
    }

    fn current(&mut self) -> Option<&mut Node> {
        self.kids.iter_mut().find(|kid| !kid.finished)
    }

    fn element(&mut self, count: u64, bytes: u64, now: Micros) {
        if self.finished {
            return;
        }
        match self.of {
            Trigger::Count(_) => self.counted += count,
            Trigger::Bytes(_) => self.counted += bytes,
            Trigger::Period { every, aligned } => {
                let end = if aligned {
                    (now / every + 1) * every
                } else {
                    now + every
                };
                self.ends = self.ends.or(Some(end));
            }
            Trigger::Sequence(_) => {
                if let Some(kid) = self.current() {
                    kid.element(count, bytes, now);
                }
            }
            Trigger::Phases { .. } => {
                let kid = usize::from(self.late);
                self.kids[kid].element(count, bytes, now);
            }
            _ => {
                for kid in &mut self.kids {
                    kid.element(count, bytes, now);
                }
            }
        }
    }

    /// Whether a period ended.
    fn tick(&mut self, now: Micros) -> bool {
        let ended = !self.over && self.ends.is_some_and(|end| end <= now);
        self.over |= ended;
        let kids = self.kids.iter_mut().map(|kid| kid.tick(now));
        kids.fold(ended, |any, kid| any | kid)
    }

    fn ready(&self, passed: bool) -> bool {
        let kid = |at: usize| self.kids[at].ready(passed);
        !self.finished
            && match &self.of {
                Trigger::AtWatermark => passed,
                Trigger::Period { .. } => self.over,
                Trigger::Count(least) | Trigger::Bytes(least) => self.counted >= *least,
                Trigger::All(_) => self.kids.iter().all(|kid| kid.ready(passed)),
                Trigger::Any(_) => self.kids.iter().any(|kid| kid.ready(passed)),
                Trigger::Sequence(_) => {
                    let current = self.kids.iter().find(|kid| !kid.finished);
                    current.is_some_and(|kid| kid.ready(passed))
                }
                Trigger::Repeat(_) => kid(0),
                Trigger::Until { .. } => kid(0) || kid(1),
                Trigger::Phases { .. } if self.late => kid(1),
                Trigger::Phases { .. } => passed || kid(0),
            }
    }

    fn fire(&mut self, passed: bool) {
        let again = |kid: &mut Node| {
            kid.fire(passed);
            if kid.finished {
                kid.renew();
            }
        };
        match &self.of {
            Trigger::Sequence(_) => {
                if let Some(kid) = self.current() {
                    kid.fire(passed);
                }
                self.finished = self.current().is_none();
            }
            Trigger::Repeat(_) => again(&mut self.kids[0]),
            Trigger::Until { .. } if !self.kids[1].ready(passed) => again(&mut self.kids[0]),
            Trigger::Phases { .. } if self.late => again(&mut self.kids[1]),
            Trigger::Phases { .. } if !passed => again(&mut self.kids[0]),
            Trigger::Phases { late, .. } => {
                self.late = true;
                self.finished = late.is_none();
                self.kids[0].renew();
            }
            of => {
                // Fires once, and all that it waited for is gone.
                *self = Node::new(&of.clone());
                self.finished = true;
            }
        }
    }
}

struct Open {
    root: Node,
    fresh: u64,
    /// Elements from before the watermark that have not fired.
    due: bool,
    passed: bool,
}

type Fired = (usize, Window, Timing, u64, bool);

#[derive(Clone, Debug)]
enum Step {
    Batch(Vec<(Micros, u64)>),
    Watermark(Micros),
    Tick(Micros),
}

/// What fires in which step, by the plain implementation.
fn plain(strategy: &Windows, history: &[Step]) -> Vec<Fired> {
    let mut fired = Vec::new();
    let mut open: BTreeMap<Window, Open> = BTreeMap::new();
    let (mut now, mut watermark) = (0, -20);
    let mut is_set = false;
    for (at, step) in history.iter().enumerate() {
        now += 1;
        let mut look = |open: &mut Open, window: Window, last: bool| {
            let passed = open.passed;
            let fires = !last && open.root.ready(passed);
            if fires {
                open.root.fire(passed);
            }
            if (fires || last) && open.fresh > 0 {
                let timing = match (passed, open.due) {
                    (false, _) => Timing::Early,
                    (true, true) => Timing::OnTime,
                    (true, false) => Timing::Late,
                };
                fired.push((at, window, timing, open.fresh, last));
                open.fresh = 0;
                open.due = false;
            }
        };
        match step {
            Step::Batch(elements) => {
                let mut of: BTreeMap<Window, (u64, u64)> = BTreeMap::new();
                for (time, bytes) in elements {
                    let mut windows = Vec::new();
                    strategy.windowing.assign(*time, &mut windows);
                    for window in windows {
                        let sums = of.entry(window).or_default();
                        *sums = (sums.0 + 1, sums.1 + bytes);
                    }
                }
                for (window, (count, bytes)) in of {
                    if is_set && window.end + strategy.allowed_lateness <= watermark {
                        continue;
                    }
                    let one = open.entry(window).or_insert_with(|| Open {
                        root: Node::new(&strategy.trigger),
                        fresh: 0,
                        due: false,
                        passed: is_set && window.end <= watermark,
                    });
                    one.fresh += count;
                    one.root.element(count, bytes, now);
                    look(one, window, false);
                }
            }
            Step::Watermark(by) => {
                let rises = *by > 0 || !is_set;
                watermark += by;
                is_set = true;
                if !rises {
                    continue;
                }
                let windows: Vec<Window> = open.keys().copied().collect();
                for window in windows {
                    let one = open.get_mut(&window).expect("it is open");
                    let crosses = !one.passed && window.end <= watermark;
                    if crosses {
                        one.passed = true;
                        one.due = one.fresh > 0;
                    }
                    if window.end + strategy.allowed_lateness <= watermark {
                        look(one, window, true);
                        open.remove(&window);
                    } else if crosses {
                        look(one, window, false);
                    }
                }
            }
            Step::Tick(by) => {
                now += by;
                for (window, one) in &mut open {
                    if one.root.tick(now) {
                        look(one, *window, false);
                    }
                }
            }
        }
    }
    fired
}

/// The same by `Panes`.
fn panes(strategy: &Windows, history: &[Step]) -> Vec<Fired> {
    let mut fired = Vec::new();
    let mut panes: Panes<()> = Panes::new(strategy.clone());
    let (mut now, mut watermark) = (0, -20);
    for (at, step) in history.iter().enumerate() {
        now += 1;
        let mut effects = Vec::new();
        match step {
            Step::Batch(elements) => {
                for (time, bytes) in elements {
                    let mut windows = Vec::new();
                    strategy.windowing.assign(*time, &mut windows);
                    for window in windows {
                        let (key, count, bytes) = ((), 1, *bytes);
                        let seen = Seen {
                            key,
                            window,
                            count,
                            bytes,
                        };
                        let placed = panes.seen(now, seen, &mut effects);
                        assert!(placed == Placement::Late || placed == Placement::Into(window));
                    }
                }
                panes.settle(now, &mut effects);
            }
            Step::Watermark(by) => {
                watermark += by;
                panes.watermark(now, watermark, &mut effects);
            }
            Step::Tick(by) => {
                now += by;
                panes.tick(now, &mut effects);
            }
        }
        for effect in effects {
            if let Effect::Fire { window, pane, .. } = effect {
                fired.push((at, window, pane.timing, pane.count, pane.last));
            }
        }
    }
    fired
}

fn triggers() -> impl Strategy<Value = Trigger> {
    let leaf = prop_oneof![
        1 => Just(Trigger::AtWatermark),
        2 => (1i64..30, any::<bool>())
            .prop_map(|(every, aligned)| Trigger::Period { every, aligned }),
        2 => (1u64..5).prop_map(Trigger::Count),
        1 => (1u64..30).prop_map(Trigger::Bytes),
    ];
    leaf.prop_recursive(4, 20, 3, |part| {
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
    })
}

fn makes_sense(trigger: &Trigger) -> bool {
    let trigger = trigger.clone();
    let strategy = Windows {
        trigger,
        ..Windows::default()
    };
    strategy.check().is_ok()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: ProptestConfig::default().cases.max(3000),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn triggers_fire_when_the_plain_implementation_says(
        trigger in triggers().prop_filter("makes sense", makes_sense),
        windowing in prop_oneof![
            (10i64..40).prop_map(|size| Windowing::Fixed { size, offset: 0 }),
            (10i64..20).prop_map(|period| Windowing::Sliding { size: 30, period, offset: 0 }),
        ],
        allowed_lateness in 0i64..60,
        history in vec(
            prop_oneof![
                5 => vec((0i64..40, 0u64..20), 1..4).prop_map(Step::Batch),
                2 => (0i64..12).prop_map(Step::Watermark),
                3 => (0i64..30).prop_map(Step::Tick),
            ],
            0..50,
        ),
    ) {
        let strategy = Windows { windowing, trigger, allowed_lateness, ..Windows::default() };
        prop_assert_eq!(panes(&strategy, &history), plain(&strategy, &history));
    }
}
