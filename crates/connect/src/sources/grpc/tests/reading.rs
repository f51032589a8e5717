//! What is read of a stream, and where the next one goes on.

use super::*;

#[test]
fn batches_hold_whole_groups_and_reading_goes_on_behind_each() {
    let server = Server::start(|_, start| ledgers(&SIZES, start));
    let from = Offsets::default();
    let all = read_to_end(&mut server.source(RESUME), &from).expect("read");
    assert_eq!(listed(&all), expected(&SIZES));
    assert!(all.last().expect("the last").last);
    let end = offsets_after(&all);
    assert!(end.0["p"].done);
    for count in 0..all.len() {
        let from = offsets_after(&all[..count]);
        let rest = read_to_end(&mut server.source(RESUME), &from).expect("read");
        let mut offsets = from.clone();
        for raw in &rest {
            account(&mut offsets, raw);
        }
        assert_eq!(offsets, end);
        let mut both = listed(&all[..count]);
        both.extend(listed(&rest));
        assert_eq!(both, expected(&SIZES), "from={from:?}");
    }
    // What has ended may have more now; within a bound it has not.
    assert_eq!(
        listed(&read(&mut server.source(RESUME), &end).expect("read")),
        []
    );
    assert_eq!(server.starts().last(), Some(&6), "the last group once more");
    let asked = server.starts().len();
    let bounded = RESUME.replace("idle: 0s", "idle: 0s, until_field: end");
    let source = || {
        let mut config = server.config(&bounded);
        config.request.insert("end".to_owned(), 6.into());
        GrpcSource::new(&config, &pool(), "p", Path::new("")).expect("a source")
    };
    let all = read_to_end(&mut source(), &Offsets::default()).expect("read");
    assert_eq!(listed(&all), expected(&SIZES));
    let end = offsets_after(&all);
    assert_eq!(listed(&read(&mut source(), &end).expect("read")), []);
    assert_eq!(server.starts().len(), asked + 1, "once, and not again");
}

#[test]
fn silence_ends_a_group_and_what_comes_later_goes_on_with_it() {
    let server = Server::start(|number, start| {
        let mut acts = ledgers(&SIZES, start);
        // Silence in the middle of the third group, then the connection is lost and it goes on.
        if number == 0 {
            acts.truncate(20);
            acts.push(Act::Hold);
        }
        acts
    });
    let more =
        "resume: { request_field: start, from_column: ledger, idle: 100ms }, batch_bytes: 1KiB";
    let mut source = server.source(more);
    let first = read(&mut source, &Offsets::default()).expect("read");
    assert_eq!(listed(&first), expected(&SIZES)[..20], "until it was idle");
    let from = offsets_after(&first);
    assert_eq!((from.0["p"].offset, from.0["p"].done), (3, false));
    let rest = read(&mut server.source(more), &from).expect("read");
    let both = [listed(&first), listed(&rest)].concat();
    assert_eq!(both, expected(&SIZES));
    assert_eq!(server.starts(), [1, 3]);
}

#[test]
fn who_does_not_read_holds_the_server_back() {
    let large = "x".repeat(10_000);
    let server = Server::start(move |_, _| {
        let one = |ledger| Act::Send(event(ledger, &large));
        (1..2000).map(one).collect()
    });
    let more = "resume: { request_field: start, from_column: ledger }, batch_bytes: 100KB";
    let mut source = server.source(more);
    block_on(async {
        source.open(&Offsets::default()).await.expect("open");
        while !matches!(source.next().await, Ok(SourceEvent::Batch(_))) {}
        // The connection lives while nobody reads, so that it could take more if it wanted to.
        let mut before = 0;
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let sent = server.sent.load(Ordering::Relaxed);
            if sent == before {
                break;
            }
            before = sent;
        }
        assert!(before > 100_000, "something was sent: {before}");
        assert!(
            before < 5 << 20,
            "no more than the window and what is under way: {before}"
        );
        let mut bytes = 0;
        while let Ok(SourceEvent::Batch(raw)) = source.next().await {
            bytes += raw.bytes();
        }
        assert!(
            bytes > 19_000_000,
            "the rest comes when it is read: {bytes}"
        );
    });
}

#[test]
fn without_resume_messages_are_counted_and_a_reconnect_takes_what_comes() {
    let server = Server::start(|number, _| {
        let mut acts = ledgers(&[2, 1], 1);
        if number == 0 {
            acts.push(Act::Fail(Code::Unavailable));
        }
        acts
    });
    let all = read_to_end(&mut server.source("lossy: true"), &Offsets::default()).expect("read");
    let offsets: Vec<u64> = listed(&all).iter().map(|(offset, _, _)| *offset).collect();
    assert_eq!(offsets, [0, 1, 2, 3, 4, 5]);
    assert_eq!(offsets_after(&all).0["p"].offset, 6);
}

#[test]
fn an_end_may_mean_that_there_is_more_later() {
    let server = Server::start(|number, start| {
        let sizes = &SIZES[..(number + 1).min(SIZES.len())];
        if number == 8 {
            return vec![Act::Fail(Code::NotFound)];
        }
        ledgers(sizes, start)
    });
    let mut source = server.source(&format!("{RESUME}, at_end: reconnect"));
    let mut all = Vec::new();
    block_on(async {
        source.open(&Offsets::default()).await.expect("open");
        loop {
            match source.next().await {
                Ok(SourceEvent::Batch(raw)) => all.push(raw),
                Ok(_) => {}
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Config);
                    return;
                }
            }
        }
    });
    // Nothing says that the last one is whole.
    assert_eq!(listed(&all), expected(&SIZES[..5]));
    offsets_after(&all);
}

/// Reads until so many messages came.
async fn read_messages(source: &mut GrpcSource, count: usize) -> Vec<RawBatch> {
    let mut all = Vec::new();
    while listed(&all).len() < count {
        let next = tokio::time::timeout(Duration::from_secs(30), source.next());
        if let SourceEvent::Batch(raw) = next.await.expect("in time").expect("next") {
            all.push(raw);
        }
    }
    all
}

/// No group is in two batches.
fn assert_whole(all: &[RawBatch]) {
    let mut before = 0;
    for raw in all {
        let values: Vec<u64> = listed(std::slice::from_ref(raw))
            .iter()
            .map(|one| one.0)
            .collect();
        assert!(values[0] > before, "{values:?} after {before}");
        before = values[values.len() - 1];
    }
}

#[test]
fn an_end_between_two_messages_of_a_group_does_not_tear_it() {
    // The server is stopped in the middle of groups, and ends its streams as if all were well; when it
    // is back it is not always where it was.
    let server = Server::start(|number, start| {
        let mut acts = ledgers(&SIZES, start);
        if let Some(cut) = [2, 3, 20, 10, 30].get(number) {
            acts.truncate(*cut);
        } else {
            acts.push(Act::Hold);
        }
        acts
    });
    for idle in ["0s", "30s"] {
        server.asked.lock().clear();
        let more = RESUME.replace("idle: 0s", &format!("idle: {idle}"));
        let mut source = server.source(&format!("{more}, at_end: reconnect"));
        let all = block_on(async {
            source.open(&Offsets::default()).await.expect("open");
            read_messages(&mut source, 51).await
        });
        assert_eq!(listed(&all), expected(&SIZES[..5]), "idle={idle}");
        assert_whole(&all);
        assert_eq!(
            server.starts(),
            [1, 1, 1, 2, 2, 2],
            "from the last whole group"
        );
    }
}

#[test]
fn a_last_group_that_is_given_again_is_complete_after_the_idle_time() {
    let server = Server::start(|_, start| ledgers(&[2, 1, 3], start));
    let more = RESUME.replace("idle: 0s", "idle: 400ms");
    let mut source = server.source(&format!("{more}, at_end: reconnect"));
    let begun = Instant::now();
    let all = block_on(async {
        source.open(&Offsets::default()).await.expect("open");
        let all = read_messages(&mut source, 6).await;
        // It is given again and again, and not taken again.
        let more = tokio::time::timeout(Duration::from_secs(1), read_messages(&mut source, 1));
        assert!(more.await.is_err(), "nothing comes twice");
        all
    });
    assert!(begun.elapsed() >= Duration::from_millis(400));
    assert_eq!(listed(&all), expected(&[2, 1, 3]));
    assert_whole(&all);
    assert!(server.starts().len() >= 3, "{:?}", server.starts());
}

/// What a server of a later version sends: a field more, that nobody knew before.
fn with_more(act: Act) -> Act {
    match act {
        Act::Send(message) => Act::Send([&message[..], &[0x78, 5]].concat().into()),
        act => act,
    }
}

#[test]
fn a_group_goes_on_though_the_server_was_upgraded() {
    let idle = RESUME.replace("idle: 0s", "idle: 100ms");
    // Silence in the middle of the third group.
    let first = Server::start(|_, start| {
        let mut acts = ledgers(&SIZES, start);
        acts.truncate(20);
        acts.push(Act::Hold);
        acts
    });
    let before = read(&mut first.source(&idle), &Offsets::default()).expect("read");
    let from = offsets_after(&before);
    assert_eq!(listed(&before).len(), 20);

    let second = Server::start(|_, start| {
        let acts = ledgers(&SIZES, start);
        acts.into_iter().map(with_more).collect()
    });
    let rest = read(&mut second.source(&idle), &from).expect("read");
    let places = |all: &[RawBatch]| -> Vec<(u64, u32)> {
        listed(all).iter().map(|one| (one.0, one.1)).collect()
    };
    let both = [places(&before), places(&rest)].concat();
    let all: Vec<(u64, u32)> = expected(&SIZES).iter().map(|one| (one.0, one.1)).collect();
    assert_eq!(both, all);

    // Another message is another one, unless the count alone is trusted.
    let third = Server::start(|_, start| {
        let mut acts = ledgers(&SIZES, start);
        acts[15] = Act::Send(event(3, "another"));
        acts
    });
    let error = read(&mut third.source(&idle), &from).expect_err("another message");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.message().contains("value=3 ordinal=15"), "{error}");
    assert!(
        error
            .hint_text()
            .is_some_and(|hint| hint.contains("trust_order"))
    );
    let trusting = idle.replace("idle:", "trust_order: true, idle:");
    let rest = read(&mut third.source(&trusting), &from).expect("read");
    assert_eq!([places(&before), places(&rest)].concat(), all);
}

#[test]
fn batches_are_as_large_as_is_asked_for() {
    let large = "x".repeat(10_000);
    let server = Server::start(move |_, _| {
        let one = |ledger| Act::Send(event(ledger, &large));
        (1..500).map(one).collect()
    });
    let sizes = |more: &str| {
        let mut source = server.source(more);
        block_on(async {
            source.open(&Offsets::default()).await.expect("open");
            source.ask(300_000);
            let mut sizes = Vec::new();
            loop {
                match source.next().await.expect("next") {
                    SourceEvent::Batch(raw) if raw.last => return sizes,
                    SourceEvent::Batch(raw) => sizes.push(raw.bytes()),
                    SourceEvent::End => return sizes,
                    _ => {}
                }
            }
        })
    };
    let own = "resume: { request_field: start, from_column: ledger, idle: 0s }";
    let most = sizes(own).into_iter().max().expect("batches");
    assert!((290_000..330_000).contains(&most), "{most}");
    let fixed = format!("{own}, batch_bytes: 100KB");
    let most = sizes(&fixed).into_iter().max().expect("batches");
    assert!(most < 130_000, "its own setting counts: {most}");
}
