//! The source with a real client: what is acknowledged is read, once, also after it is opened anew.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    thread,
};

use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::{
    sources::{
        WalConfig,
        testing::{block_on, offsets_after, text},
    },
    units::ByteSize,
};

fn config() -> HttpConfig {
    HttpConfig {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        ..HttpConfig::default()
    }
}

fn source(dir: &Path, config: &HttpConfig) -> HttpSource {
    let context = SourceContext {
        wal: Some(dir.join("wal")),
        memory_bytes: Some(64 << 20),
        ..SourceContext::default()
    };
    let format = FormatConfig::Json(crate::formats::JsonConfig::default());
    HttpSource::new(config, &format, &context).expect("a source")
}

async fn opened(dir: &Path, config: &HttpConfig, from: &Offsets) -> HttpSource {
    let mut source = source(dir, config);
    source.open(from).await.expect("open");
    source
}

/// Status and answer of one request, over a connection of its own.
fn post(address: SocketAddr, headers: &str, body: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect(address).expect("connect");
    let request = format!(
        "POST /events HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/x-ndjson\r\n\
         Content-Length: {}\r\n{headers}\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).expect("send");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("receive");
    let status = answer[9..12].parse().expect("a status");
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    (status, serde_json::from_str(body).unwrap_or_default())
}

/// What comes until nothing does.
async fn read(source: &mut HttpSource) -> Vec<RawBatch> {
    let mut all = Vec::new();
    loop {
        match source.next().await.expect("next") {
            SourceEvent::Batch(raw) => all.push(raw),
            SourceEvent::Idle | SourceEvent::End => return all,
            _ => {}
        }
    }
}

fn event(n: usize) -> String {
    format!("{{\"n\":{n}}}\n")
}

#[test]
fn what_is_acknowledged_is_read_also_after_a_restart() {
    let dir = TempDir::new().expect("a folder");
    let config = HttpConfig {
        batch_bytes: ByteSize(64),
        ..config()
    };
    block_on(async {
        let mut source = opened(dir.path(), &config, &Offsets::default()).await;
        let address = source.address();
        let posting = thread::spawn(move || {
            let each = |n| {
                thread::spawn(move || assert_eq!(post(address, "", &event(n)).0, 200));
                post(address, "", &event(n + 100)).0
            };
            assert!((0..20).map(each).all(|status| status == 200));
        });
        posting.join().expect("posted");
        let mut batches = read(&mut source).await;
        batches.extend(read(&mut source).await);
        let mut lines: Vec<String> = text(&batches).lines().map(str::to_owned).collect();
        lines.sort();
        assert_eq!(lines.len(), 40, "{lines:?}");
        assert!(
            (2..40).contains(&batches.len()),
            "small requests are put together, as far as they fit: {}",
            batches.len()
        );
        let offsets = offsets_after(&batches);
        drop(source);
        // Nothing was committed: all of it comes again, from wherever the checkpoint is.
        let mut again = opened(dir.path(), &config, &Offsets::default()).await;
        assert_eq!(text(&read(&mut again).await), text(&batches));
        drop(again);
        let half = offsets_after(&batches[..1]);
        let mut again = opened(dir.path(), &config, &half).await;
        assert_eq!(text(&read(&mut again).await), text(&batches[1..]));
        again.committed(&offsets).await.expect("trim");
        drop(again);
        let mut end = opened(dir.path(), &config, &offsets).await;
        assert_eq!(read(&mut end).await.len(), 0);
        assert_eq!(post(end.address(), "", &event(1)).0, 200);
        assert_eq!(text(&read(&mut end).await), event(1));
    });
}

#[test]
fn a_key_is_written_once_however_often_it_comes() {
    let dir = TempDir::new().expect("a folder");
    block_on(async {
        let mut source = opened(dir.path(), &config(), &Offsets::default()).await;
        let address = source.address();
        let key = "Idempotency-Key: k1\r\n";
        let body = format!("{}{}", event(1), event(2));
        let at_once: Vec<_> = (0..16)
            .map(|_| {
                let body = body.clone();
                thread::spawn(move || post(address, key, &body))
            })
            .collect();
        let answers: Vec<_> = at_once
            .into_iter()
            .map(|thread| thread.join().expect("an answer"))
            .collect();
        let repeated = |answer: &&(u16, Value)| answer.1["repeated"] == true;
        assert!(answers.iter().all(|a| a.0 == 200 && a.1["accepted"] == 2));
        assert_eq!(answers.iter().filter(repeated).count(), 15);
        assert_eq!(post(address, key, &event(3)).0, 422);
        assert_eq!(post(address, "Idempotency-Key: \r\n", &event(3)).0, 400);
        // What was refused is not remembered.
        let other = "Idempotency-Key: k2\r\n";
        assert_eq!(post(address, other, "nonsense").0, 400);
        assert_eq!(post(address, other, &event(3)).1["repeated"], Value::Null);
        let batches = read(&mut source).await;
        assert_eq!(text(&batches), format!("{body}{}", event(3)));
        let offsets = offsets_after(&batches);
        source.committed(&offsets).await.expect("trim");
        drop(source);
        let mut source = opened(dir.path(), &config(), &offsets).await;
        let answer = post(source.address(), key, &body);
        assert_eq!((answer.0, &answer.1["repeated"]), (200, &Value::Bool(true)));
        assert_eq!(read(&mut source).await.len(), 0);
    });
}

#[test]
fn a_reader_that_does_not_read_stops_the_clients_and_nothing_else() {
    let dir = TempDir::new().expect("a folder");
    let config = HttpConfig {
        max_pending: ByteSize(100),
        ..config()
    };
    block_on(async {
        let mut source = opened(dir.path(), &config, &Offsets::default()).await;
        let address = source.address();
        let mut taken = String::new();
        let mut refused = 0;
        for n in 0..30 {
            match post(address, "", &event(n)).0 {
                200 => taken += &event(n),
                429 => refused += 1,
                other => panic!("status={other}"),
            }
        }
        assert!(refused > 10 && taken.len() <= 100, "{refused}");
        assert_eq!(source.lag(), Some(taken.len() as u64));
        let batches = read(&mut source).await;
        assert_eq!(text(&batches), taken);
        // At once when there is room, and a body larger than that, too.
        let large: String = (0..30).map(event).collect();
        assert_eq!(post(address, "", &large).0, 200);
        assert_eq!(post(address, "", &event(1)).0, 429);
        assert_eq!(text(&read(&mut source).await), large);
        assert_eq!(post(address, "", &event(1)).0, 200);
        let intake = source.link().expect("a link");
        let levels = intake.intake().expect("an intake").levels();
        assert_eq!(levels.pending_bytes, event(1).len() as u64);
    });
}

#[test]
fn who_is_told_to_stop_takes_nothing_and_gives_what_it_has() {
    let dir = TempDir::new().expect("a folder");
    block_on(async {
        let mut source = opened(dir.path(), &config(), &Offsets::default()).await;
        let address = source.address();
        for n in 0..5 {
            assert_eq!(post(address, "", &event(n)).0, 200);
        }
        assert!(source.stop());
        assert_eq!(post(address, "", &event(9)).0, 503);
        let batches = read(&mut source).await;
        assert_eq!(text(&batches), (0..5).map(event).collect::<String>());
        assert!(matches!(
            source.next().await.expect("still"),
            SourceEvent::End
        ));
    });
}

#[test]
fn what_is_no_request_for_events_is_told_so() {
    let dir = TempDir::new().expect("a folder");
    let config = HttpConfig {
        tokens: vec!["one".into(), "two".into()]
            .into_iter()
            .map(|t: String| calve_engine::Secret::new(t))
            .collect(),
        max_body: ByteSize(50),
        ..config()
    };
    block_on(async {
        let source = opened(dir.path(), &config, &Offsets::default()).await;
        let address = source.address();
        let raw = |request: &str| {
            let mut stream = TcpStream::connect(address).expect("connect");
            stream.write_all(request.as_bytes()).expect("send");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("receive");
            answer
        };
        let get = raw("GET /events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        assert!(
            get.starts_with("HTTP/1.1 405") && get.contains("allow: POST"),
            "{get}"
        );
        let other =
            raw("POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
        assert!(other.starts_with("HTTP/1.1 404"), "{other}");
        assert_eq!(post(address, "", &event(1)).0, 401);
        assert_eq!(
            post(address, "Authorization: Bearer three\r\n", &event(1)).0,
            401
        );
        assert_eq!(
            post(address, "Authorization: Basic one\r\n", &event(1)).0,
            401
        );
        for token in ["one", "two"] {
            let header = format!("Authorization: Bearer {token}\r\n");
            assert_eq!(post(address, &header, &event(1)).0, 200);
        }
        let token = "Authorization: Bearer one\r\n";
        let large: String = (0..50).map(event).collect();
        assert_eq!(post(address, token, &large).0, 413);
        let packed = format!("{token}Content-Encoding: br\r\n");
        assert_eq!(post(address, &packed, &event(1)).0, 415);
        let chunked = format!(
            "POST /events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{token}\
             Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n\
             {:x}\r\n{large}\r\n0\r\n\r\n",
            large.len()
        );
        assert!(raw(&chunked).starts_with("HTTP/1.1 413"));
    });
}

#[test]
fn settings_that_cannot_be_are_refused() {
    use crate::formats::{ArrowConfig, CsvConfig, JsonConfig};
    let json = FormatConfig::Json(JsonConfig::default());
    config().validate(&json).expect("the defaults");
    let everywhere = SocketAddr::from(([0, 0, 0, 0], 8090));
    let open = HttpConfig {
        listen: everywhere,
        ..config()
    };
    let error = open.validate(&json).expect_err("no tokens");
    assert!(error.message().contains("not loopback"), "{error:?}");
    let tokens = vec![calve_engine::Secret::new("t")];
    let guarded = HttpConfig { tokens, ..open };
    guarded.validate(&json).expect("tokens");
    assert!(!format!("{guarded:?}").contains("\"t\""));
    let wrong = [
        HttpConfig {
            path: "events".to_owned(),
            ..config()
        },
        HttpConfig {
            tokens: vec![calve_engine::Secret::new(" ")],
            ..config()
        },
        HttpConfig {
            max_depth: 0,
            ..config()
        },
        HttpConfig {
            wal: WalConfig {
                segment_size: ByteSize(1),
                ..WalConfig::default()
            },
            ..config()
        },
    ];
    for wrong in wrong {
        assert!(wrong.validate(&json).is_err(), "{wrong:?}");
    }
    for format in [
        FormatConfig::Csv(CsvConfig::default()),
        FormatConfig::Arrow(ArrowConfig::default()),
    ] {
        assert!(config().validate(&format).is_err(), "{format:?}");
    }
}

#[test]
fn answers_on_their_way_are_given_before_the_end() {
    let dir = TempDir::new().expect("a folder");
    block_on(async {
        let source = opened(dir.path(), &config(), &Offsets::default()).await;
        let address = source.address();
        let mut stream = TcpStream::connect(address).expect("connect");
        let head = "POST /events HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\n\
                    Content-Length: 8\r\n\r\n";
        stream.write_all(head.as_bytes()).expect("send");
        stream.write_all(b"{\"n\"").expect("send");
        let intake = Arc::clone(source.intake.as_ref().expect("open"));
        while intake.under_way() == 0 {
            thread::yield_now();
        }
        let ending = thread::spawn(move || drop(source));
        let begun = Instant::now();
        while TcpStream::connect(address).is_ok() {
            assert!(begun.elapsed() < Duration::from_secs(20), "it listens on");
            thread::yield_now();
        }
        stream.write_all(b":1}\n").expect("send");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("receive");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        ending.join().expect("ended");
        let mut again = opened(dir.path(), &config(), &Offsets::default()).await;
        assert_eq!(text(&read(&mut again).await), event(1));
    });
}

#[test]
fn batches_are_as_large_as_is_asked_for() {
    let line = format!("{{\"n\":\"{}\"}}\n", "x".repeat(900));
    let most = |config: &HttpConfig, asked: usize| {
        let dir = TempDir::new().expect("a folder");
        block_on(async {
            let mut source = opened(dir.path(), config, &Offsets::default()).await;
            source.ask(asked);
            let (address, line) = (source.address(), line.clone());
            let posting = thread::spawn(move || {
                assert!((0..40).all(|_| post(address, "", &line.repeat(20)).0 == 200));
            });
            posting.join().expect("posted");
            let batches = read(&mut source).await;
            let sizes = batches.iter().map(RawBatch::bytes);
            sizes.max().expect("batches")
        })
    };
    let one = line.len() * 20;
    assert_eq!(most(&config(), 10 * one) / one, 10);
    assert_eq!(most(&config(), 1) / one, 1, "a request is not split");
    let fixed = HttpConfig {
        batch_bytes: ByteSize(3 * one as u64),
        ..config()
    };
    assert_eq!(most(&fixed, 10 * one) / one, 3, "its own setting counts");
    let little = HttpConfig {
        max_pending: ByteSize(40 * one as u64),
        ..config()
    };
    assert_eq!(most(&little, 30 * one) / one, 20, "half of what may wait");
}
