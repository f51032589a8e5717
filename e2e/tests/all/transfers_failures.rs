//! Token transfers over gRPC when something fails: server, connection, process or sink. Nothing is lost,
//! nothing comes twice, no ledger is torn apart.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    time::{Duration, Instant},
};

use calve_e2e::{
    Sink, pause, python,
    transfers::{
        Fault, Generated, Ledgers, Server, Settings, What,
        pipeline::{FIRST, Place, generated, range, wait_for, wait_until, whole},
    },
};
use serde_json::{Value, json};
use tonic::Code;

#[test]
fn every_kind_of_failure_of_the_server_is_survived_in_the_middle_of_a_ledger() {
    let (first, last) = (FIRST, FIRST + 60);
    let generated = generated();
    let expected = whole(&generated, first, last);
    let fault = |ledger: u32, after, what| Fault {
        ledger: first + ledger,
        after,
        what,
    };
    let settings = Settings {
        faults: vec![
            fault(3, 5, What::Status(Code::Unavailable)),
            fault(10, 17, What::Status(Code::Internal)),
            fault(20, 1, What::Cut),
            fault(30, 0, What::Status(Code::Unavailable)),
            fault(31, 9, What::Status(Code::Unknown)),
            fault(41, 3, What::Cut),
            // Behind all events of the last ledger, of which nobody knows that it is whole.
            fault(60, 1000, What::Status(Code::Internal)),
        ],
        ..Settings::default()
    };
    let server = Server::start(generated, settings);
    let root = tempfile::tempdir().expect("a folder");
    let place = Place::new(root.path().to_owned(), Sink::Iceberg);
    place.write(&server.endpoint(), &range(first, last), "");
    place.run();
    place.assert_holds(&expected);
    assert_eq!(server.asked().len(), 8, "{:?}", server.asked());
    assert_eq!(place.log().matches("the stream is interrupted").count(), 7);
}

#[test]
fn killed_anywhere_the_table_is_the_same_and_holds_whole_ledgers() {
    let (first, last) = (FIRST, FIRST + 150);
    let root = tempfile::tempdir().expect("a folder");
    let paced = || Settings {
        pause_ms: 8,
        ..Settings::default()
    };
    let server = Server::start(generated(), paced());
    let expected = whole(&generated(), first, last);
    let mut places = Vec::new();
    for sink in [Sink::Iceberg, Sink::Parquet] {
        let golden = Place::new(root.path().join(format!("{sink:?}")), sink);
        golden.write(&server.endpoint(), &range(first, last), "");
        golden.run();
        places.push(golden);
        let own: &[&str] = match sink {
            Sink::Iceberg => &[
                "iceberg.commit.before_cas=kill@3",
                "iceberg.commit.after_cas=kill@2",
            ],
            Sink::Parquet => &[
                "parquet.publish.each=kill@4",
                "parquet.commit.before_entry=kill@2",
            ],
        };
        let both = [
            "checkpoint.before_create=kill@3",
            "checkpoint.after_create=kill@4",
            "prepare.after_files=kill@2",
            "commit.after=kill@3",
        ];
        for fault in both.iter().chain(own) {
            let place = Place::new(root.path().join(format!("{sink:?}-{fault}")), sink);
            place.write(&server.endpoint(), &range(first, last), "");
            let status = place.start(fault).wait();
            assert_eq!(
                status.signal(),
                Some(9),
                "{fault}: not reached: {}",
                place.log()
            );
            place.run();
            places.push(place);
        }
        // At moments that nobody chose, with a server that fails beside.
        let place = Place::new(root.path().join(format!("{sink:?}-random")), sink);
        place.write(&server.endpoint(), &range(first, last), "");
        for n in 0..6_u64 {
            let running = place.start("");
            pause(150 + 97 * n % 240);
            if n % 2 == 0 {
                server.cut();
                pause(40);
            }
            running.kill();
        }
        place.run();
        places.push(place);
    }
    let specs: Vec<Value> = places.iter().map(Place::spec).collect();
    let all = python("transfers.py", &specs);
    let fingerprint = all[0]["fingerprint"].clone();
    for (place, found) in places.iter().zip(all) {
        let what = place.dir.display();
        assert_eq!(found["ledgers"], expected, "{what}: {found}");
        assert_eq!(found["fingerprint"], fingerprint, "{what}");
        assert_eq!(found["duckdb"], fingerprint, "{what}");
        assert_eq!(
            found["torn"],
            json!([]),
            "{what}: a commit holds half a ledger"
        );
        assert_eq!(found["bad_indexes"], 0, "{what}");
        assert!(found["snapshots"].as_u64() > Some(3), "{what}: {found}");
    }
}

#[test]
fn a_live_ledger_becomes_visible_without_further_events() {
    let root = tempfile::tempdir().expect("a folder");
    let settings = Settings {
        tip: Some(FIRST + 1),
        ..Settings::default()
    };
    let generated = Generated::new(3, 40);
    let counts: Vec<u64> = (0..4)
        .map(|n| generated.events(FIRST + n).len() as u64)
        .collect();
    let server = Server::start(generated, settings);
    let place = Place::new(root.path().to_owned(), Sink::Iceberg);
    let source = format!("start_ledger: {FIRST}, idle: 1s");
    place.write(&server.endpoint(), &source, "");
    let running = place.start("");
    // The last ledger has no later one; silence ends it.
    wait_for(&place, counts[0] + counts[1]);
    server.set_tip(FIRST + 2);
    wait_for(&place, counts[..3].iter().sum());
    assert!(running.terminate().success(), "{}", place.log());
    // While nobody looked the network went on.
    server.set_tip(FIRST + 3);
    let running = place.start("");
    wait_for(&place, counts.iter().sum());
    assert!(running.terminate().success(), "{}", place.log());
    let found = place.read();
    assert_eq!(found["torn"], json!([]), "{found}");
    assert_eq!(found["bad_indexes"], 0);
}

#[test]
fn a_live_server_that_stops_between_two_events_tears_no_ledger() {
    let last = FIRST + 12;
    let generated = generated();
    let expected = whole(&generated, FIRST, last);
    let all = expected.as_object().expect("a map").values();
    let all: u64 = all.filter_map(Value::as_u64).sum();
    let end = |ledger: u32, after| Fault {
        ledger: FIRST + ledger,
        after,
        what: What::End,
    };
    let settings = Settings {
        faults: vec![
            end(2, 5),
            // Again in the same ledger, and later; and with its last event.
            end(2, 9),
            end(6, 1),
            end(9, 1000),
            end(12, 3),
        ],
        tip: Some(last),
        ..Settings::default()
    };
    let server = Server::start(generated, settings);
    let root = tempfile::tempdir().expect("a folder");
    let place = Place::new(root.path().to_owned(), Sink::Iceberg);
    let source = format!("start_ledger: {FIRST}, idle: 2s");
    place.write(&server.endpoint(), &source, "");
    let running = place.start("");
    wait_for(&place, all);
    assert!(running.terminate().success(), "{}", place.log());
    place.assert_holds(&expected);
    assert_eq!(server.asked().len(), 6, "{:?}", server.asked());
}

#[test]
fn a_range_may_be_made_longer_afterwards() {
    let generated = generated();
    let expected = whole(&generated, FIRST, FIRST + 20);
    let server = Server::start(generated, Settings::default());
    let root = tempfile::tempdir().expect("a folder");
    let place = Place::new(root.path().to_owned(), Sink::Iceberg);
    for last in [9, 9, 5, 20] {
        place.write(&server.endpoint(), &range(FIRST, FIRST + last), "");
        place.run();
    }
    place.assert_holds(&expected);
    let asked = server.asked();
    assert_eq!(
        asked.len(),
        2,
        "what was read is not asked for again: {asked:?}"
    );
}

#[test]
fn a_stream_that_the_deadline_cuts_goes_on_behind_what_is_durable() {
    let (first, last) = (FIRST, FIRST + 40);
    let generated = generated();
    let expected = whole(&generated, first, last);
    let silence = |ledger: u32, after| Fault {
        ledger: first + ledger,
        after,
        what: What::Silence,
    };
    let settings = Settings {
        faults: vec![
            silence(4, 7),
            silence(15, 0),
            silence(26, 1),
            silence(40, 3),
        ],
        ..Settings::default()
    };
    let server = Server::start(generated, settings);
    let root = tempfile::tempdir().expect("a folder");
    let place = Place::new(root.path().to_owned(), Sink::Iceberg);
    let source = format!("{}, idle: 0s, deadline: 2s", range(first, last));
    place.write(&server.endpoint(), &source, "");
    // One process dies after the second cut, so that the durable position is what the next one has.
    let running = place.start("");
    wait_until(&place, || server.asked().len() >= 3);
    running.kill();
    place.run();
    place.assert_holds(&expected);
    assert!(place.log().contains("DEADLINE_EXCEEDED"), "{}", place.log());
    let asked = server.asked();
    // Four silences, of which the server may have begun one while the process died, and a start.
    assert!((5..=6).contains(&asked.len()), "{asked:?}");
    assert!(asked[1].0 > first && asked[1].0 < first + 4, "{asked:?}");
}

#[test]
fn a_sink_that_stands_still_holds_the_server_back() {
    let root = tempfile::tempdir().expect("a folder");
    let (first, last) = (FIRST, FIRST + 3000);
    let server = Server::start(Generated::new(5, 400), Settings::default());
    let place = Place::new(root.path().to_owned(), Sink::Iceberg);
    place.write(
        &server.endpoint(),
        &range(first, last),
        "limits: { memory: 64MiB }\n",
    );
    // However fast the machine is, an epoch has so many rows.
    let text = fs::read_to_string(place.file()).expect("read");
    let few = text.replace("min_interval: 10ms", "min_interval: 10ms, rows: 50000");
    assert_ne!(few, text);
    fs::write(place.file(), few).expect("write");
    // No commit succeeds, so that epochs pile up, up to their limit.
    let running = place.start("iceberg.commit.before_manifest=error@1+");
    let (mut before, mut still) = (0, 0);
    let begun = Instant::now();
    while still < 3 {
        pause(700);
        let sent = server.sent();
        still = if sent > 0 && sent == before {
            still + 1
        } else {
            0
        };
        before = sent;
        assert!(
            begun.elapsed() < Duration::from_mins(1),
            "it is read on and on: {sent}"
        );
    }
    let expected = whole(&Generated::new(5, 400), first, last);
    let all: u64 = expected
        .as_object()
        .expect("a map")
        .values()
        .filter_map(Value::as_u64)
        .sum();
    assert!(
        before < all / 2,
        "the server was held back: {before} of {all}"
    );
    running.kill();
    place.run();
    place.assert_holds(&expected);
}
