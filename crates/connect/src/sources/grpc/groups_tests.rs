//! Groups: whole in every batch, each message once, whatever is interrupted.

use proptest::prelude::*;

use super::*;

/// What a server has: values, each with its message.
type Stream = Vec<(u64, Vec<u8>)>;

fn stream(sizes: &[u8]) -> Stream {
    let mut all = Stream::new();
    let mut value = 0;
    for (n, size) in sizes.iter().enumerate() {
        value += 1 + (n as u64 % 3);
        for ordinal in 0..*size {
            all.push((value, format!("{value}/{ordinal}").into_bytes()));
        }
    }
    all
}

fn listed(taken: &Taken) -> Vec<(u64, u32, String)> {
    let messages = &taken.messages;
    let one = |at| {
        let text = String::from_utf8_lossy(messages.get(at)).into_owned();
        (messages.offsets[at], messages.ordinals[at], text)
    };
    (0..messages.len()).map(one).collect()
}

fn new(given: Mark, batch_bytes: usize, group_bytes: usize) -> Groups {
    let limits = Limits {
        batch_bytes,
        group_bytes,
        trust_order: false,
    };
    Groups::new(given, limits, None)
}

fn push_all(groups: &mut Groups, stream: &[(u64, Vec<u8>)]) {
    for (value, message) in stream {
        groups.push(*value, message).expect("in order");
    }
}

#[test]
fn a_group_is_given_out_when_a_later_value_came() {
    let all = stream(&[2, 1, 3]);
    let mut groups = new(Mark::default(), 1, 1000);
    push_all(&mut groups, &all[..2]);
    assert!(groups.take().is_none() && groups.has_open());
    push_all(&mut groups, &all[2..3]);
    let first = groups.take().expect("whole");
    assert_eq!(listed(&first), [(1, 0, "1/0".into()), (1, 1, "1/1".into())]);
    assert_eq!(
        (first.from, first.mark.value, first.mark.whole),
        (0, 1, true)
    );
    push_all(&mut groups, &all[3..]);
    let second = groups.take().expect("whole");
    assert_eq!(
        (second.from, second.mark.value, second.messages.len()),
        (1, 3, 1)
    );
    assert!(groups.take().is_none());
    assert!(groups.end_open());
    let third = groups.take().expect("ended");
    assert_eq!((third.mark.count, third.mark.whole), (3, false));
    assert!(!groups.end_open());
}

#[test]
fn a_group_that_silence_ended_goes_on_with_its_count() {
    let all = stream(&[4, 1]);
    let mut groups = new(Mark::default(), 1, 1000);
    push_all(&mut groups, &all[..2]);
    assert!(groups.end_open());
    let first = groups.take().expect("ended");
    // As a checkpoint keeps it.
    let tag = first.mark.print();
    let stored = Mark::of(first.mark.value, tag.as_deref()).expect("a mark");
    assert_eq!(stored, first.mark);
    for restarted in [false, true] {
        let mut again = new(stored.clone(), 1, 1000);
        let groups = if restarted { &mut again } else { &mut groups };
        if restarted {
            push_all(groups, &all[..2]);
            assert!(!groups.has_open(), "they were taken before");
        }
        push_all(groups, &all[2..]);
        let second = groups.take().expect("the rest");
        assert_eq!(
            listed(&second),
            [(1, 2, "1/2".into()), (1, 3, "1/3".into())]
        );
        assert_eq!(
            (second.from, second.mark.value, second.mark.count),
            (1, 1, 4)
        );
        assert!(second.mark.whole);
    }
}

#[test]
fn marks_of_earlier_builds_go_on_and_others_are_not_guessed() {
    let older = r#"{"count":2,"whole":false,"last":{"bytes":3,"sha":"9f86d081884c7d65"}}"#;
    let mark = Mark::of(1, Some(older)).expect("a mark");
    assert_eq!((mark.value, mark.count, mark.whole), (1, 2, false));
    let all = stream(&[4, 1]);
    let mut groups = new(mark, 1, 1000);
    push_all(&mut groups, &all);
    let rest = groups.take().expect("the rest");
    assert_eq!(listed(&rest), [(1, 2, "1/2".into()), (1, 3, "1/3".into())]);
    for wrong in [
        "",
        "{}",
        r#"{"count":2}"#,
        r#"{"count":2,"whole":false,"last":"x"}"#,
    ] {
        let error = Mark::of(1, Some(wrong)).expect_err(wrong);
        assert_eq!(error.kind(), calve_engine::ErrorKind::Corrupt);
    }
    let named = Mark::of(7, None).expect("an offset");
    assert!(named.whole && !named.is_start());
}

#[test]
fn another_order_than_before_is_found() {
    let all = stream(&[3, 1]);
    let mut groups = new(Mark::default(), 1, 1000);
    push_all(&mut groups, &all[..2]);
    groups.end_open();
    let mark = groups.take().expect("ended").mark;
    let mut fewer = new(mark.clone(), 1, 1000);
    push_all(&mut fewer, &all[..1]);
    let error = fewer.push(all[3].0, &all[3].1).expect_err("one is missing");
    assert!(
        error.message().contains("fewer") && error.hint_text().is_some(),
        "{error}"
    );
    let mut other = new(mark, 1, 1000);
    push_all(&mut other, &all[..1]);
    let error = other.push(all[2].0, &all[2].1).expect_err("another one");
    assert!(error.message().contains("another message"), "{error}");
    let limits = Limits {
        trust_order: true,
        ..other.limits
    };
    let mut trusting = Groups::new(other.front.clone(), limits, None);
    push_all(&mut trusting, &all[..1]);
    let pushed = trusting
        .push(all[2].0, &all[2].1)
        .expect("told by its count");
    assert_eq!(pushed, Pushed::Known);
    let mut back = new(Mark::default(), 1, 1000);
    push_all(&mut back, &all);
    let error = back.push(1, b"x").expect_err("goes back");
    assert!(error.message().contains("go back"), "{error}");
}

#[test]
fn a_group_has_a_limit() {
    let mut groups = new(Mark::default(), 10, 260);
    for _ in 0..10 {
        groups.push(1, &[0; 10]).expect("fits");
    }
    // What is complete does not count.
    groups.push(2, &[0; 244]).expect("fits");
    let error = groups
        .push(2, b"")
        .expect_err("too large, though it has no bytes");
    assert_eq!(error.kind(), calve_engine::ErrorKind::Config);
    assert!(
        error.message().contains("value=2 max_group_bytes=260"),
        "{error}"
    );
}

#[test]
fn messages_that_stand_alone_are_counted() {
    let mut groups = new(Mark::default(), 3 * MESSAGE_BYTES + 6, 0);
    for text in ["ab", "c", "def"] {
        groups.push_alone(text.as_bytes());
    }
    assert!(groups.is_full(), "six bytes, and three messages");
    let first = groups.take().expect("all");
    assert_eq!((first.from, first.mark.value), (0, 3));
    assert_eq!(first.messages.offsets, [0, 1, 2]);
    groups.restart();
    groups.push_alone(b"x");
    let second = groups.take().expect("one");
    assert_eq!(
        (second.from, second.mark.value, second.messages.offsets),
        (3, 4, vec![3])
    );
}

/// Groups begin with a message that cannot be read where `damaged` says it; not the first one.
fn with_unreadable(stream: Stream, damaged: &[bool]) -> Stream {
    let mut all = Stream::new();
    let mut groups = 0;
    for (value, message) in stream {
        if all.last().is_some_and(|(last, _)| *last != value) {
            if damaged[groups % damaged.len()] {
                all.push((value, format!("?{value}").into_bytes()));
            }
            groups += 1;
        }
        all.push((value, message));
    }
    all
}

fn is_unreadable(message: &[u8]) -> bool {
    message.starts_with(b"?")
}

/// What happens to a reader.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// So many messages come.
    Read(u8),
    /// Silence.
    Idle,
    /// The connection is lost.
    Cut,
    /// The process dies; what was given out is durable.
    Die,
    /// What is complete is given out.
    Take,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..12_u8).prop_map(Step::Read),
        1 => Just(Step::Idle),
        1 => Just(Step::Cut),
        1 => Just(Step::Die),
        2 => Just(Step::Take),
    ]
}

proptest! {
    #[test]
    fn each_message_comes_once_and_in_order(
        sizes in prop::collection::vec(1..6_u8, 1..12),
        steps in prop::collection::vec(step(), 0..60),
        damaged in prop::collection::vec(any::<bool>(), 12),
        silences in any::<bool>(),
        inclusive in any::<bool>(),
    ) {
        let all = with_unreadable(stream(&sizes), &damaged);
        // What cannot be read goes with the group before it.
        let mut expected: Vec<(u64, u32, String)> = Vec::new();
        for (value, message) in &all {
            let last = expected.last().filter(|last| is_unreadable(message) || last.0 == *value);
            let (value, ordinal) = last.map_or((*value, 0), |last| (last.0, last.1 + 1));
            expected.push((value, ordinal, String::from_utf8_lossy(message).into_owned()));
        }
        let mut groups = new(Mark::default(), 60, 10_000);
        let mut durable = Mark::default();
        let mut out: Vec<(u64, u32, String)> = Vec::new();
        let mut at = 0;
        // Where a server begins that is asked for what is behind a mark.
        let begin = |mark: &Mark| {
            let from = match (inclusive, mark.whole) {
                _ if mark.is_start() => return 0,
                (false, true) => mark.value + 1,
                (true, _) | (false, false) => mark.value,
            };
            all.partition_point(|(value, _)| *value < from)
        };
        let ends = [Step::Read(255), Step::Idle, Step::Take, Step::Take];
        for step in steps.into_iter().chain(ends) {
            match step {
                Step::Read(count) => {
                    for (value, message) in all.iter().skip(at).take(count as usize) {
                        if is_unreadable(message) {
                            let pushed = groups.push_unread(message).expect("in order");
                            prop_assert!(pushed.is_some(), "it is never the first of all");
                        } else {
                            groups.push(*value, message).expect("in order");
                        }
                        at += 1;
                    }
                }
                Step::Idle => {
                    if silences || at == all.len() {
                        groups.end_open();
                    }
                }
                Step::Cut => {
                    groups.restart();
                    at = begin(groups.front());
                }
                Step::Die => {
                    let mark = Mark::of(durable.value, durable.print().as_deref());
                    groups = new(mark.expect("a mark"), 60, 10_000);
                    at = begin(&durable);
                }
                Step::Take => {
                    while let Some(taken) = groups.take() {
                        prop_assert_eq!(taken.from, durable.value);
                        prop_assert!(taken.mark.value >= taken.from);
                        let rows = listed(&taken);
                        for (value, _, _) in &rows {
                            prop_assert!((taken.from..=taken.mark.value).contains(value));
                        }
                        if !silences && at < all.len() {
                            let last = rows.last().expect("never empty").0;
                            let count = rows.iter().filter(|row| row.0 == last).count();
                            let there = expected.iter().filter(|row| row.0 == last).count();
                            prop_assert_eq!(count, there, "a group is whole");
                        }
                        out.extend(rows);
                        durable = taken.mark;
                    }
                }
            }
        }
        prop_assert_eq!(out, expected);
    }
}
