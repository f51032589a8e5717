use axum::http::HeaderValue;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::*;

const MINUTE: Duration = Duration::from_mins(1);

fn running() -> Status {
    let metrics = Metrics::new("orders", "main");
    metrics.set_state("running");
    metrics.set_connected(true);
    metrics.status()
}

async fn start(
    listen: &str,
    token: Option<&str>,
    stop: &CancellationToken,
) -> Result<SocketAddr, Error> {
    let bound = Bound::to(listen.parse().expect("an address"), token).await?;
    Ok(serve().start(bound, stop.clone()))
}

fn serve() -> Serve {
    Serve {
        metrics: Metrics::new("orders", "main"),
        figures: Some(Arc::new(|| json!({ "buckets": [{ "n": 7 }] }))),
        overdue_after: MINUTE,
    }
}

/// Status code, head and body of one request.
async fn request(address: SocketAddr, line: &str, headers: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).await.expect("connects");
    let text = format!("{line} HTTP/1.1\r\nHost: calve\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(text.as_bytes()).await.expect("sends");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    (
        code.expect("a code"),
        head.to_ascii_lowercase(),
        body.to_owned(),
    )
}

#[test]
fn only_loopback_does_without_a_token() {
    let needed = |listen: &str, token| required_token(listen.parse().expect("an address"), token);
    for listen in [
        "127.0.0.1:1",
        "127.9.9.9:1",
        "[::1]:1",
        "[::ffff:127.0.0.1]:1",
    ] {
        assert_eq!(needed(listen, None).expect("loopback"), None, "{listen}");
    }
    for listen in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "[::ffff:10.0.0.1]:1"] {
        for token in [None, Some(""), Some("  ")] {
            let error = needed(listen, token).expect_err("no token");
            assert_eq!(error.kind(), calve_engine::ErrorKind::Config, "{listen}");
        }
        assert_eq!(
            needed(listen, Some("t")).expect("a token"),
            Some(digest("t"))
        );
    }
    let asked = needed("127.0.0.1:1", Some("t")).expect("loopback");
    assert_eq!(
        asked,
        Some(digest("t")),
        "a token that is set is asked for everywhere"
    );
}

#[test]
fn only_the_whole_token_opens() {
    let token = digest("s3cret");
    let with = |value: &'static [u8]| {
        let mut headers = HeaderMap::new();
        let value = HeaderValue::from_bytes(value).expect("a header");
        headers.insert(header::AUTHORIZATION, value);
        carries(&headers, &token)
    };
    assert!(with(b"Bearer s3cret"));
    assert!(
        with(b"bearer s3cret"),
        "the scheme has no case (RFC 9110, section 11.1)"
    );
    for wrong in [
        &b"Bearer s3cre"[..],
        b"Bearer s3cret2",
        b"Bearer S3cret",
        b"Bearer ",
        b"Bearer",
        b"Basic s3cret",
        b"s3cret",
        b"",
        b"Bearer \xff",
    ] {
        assert!(!with(wrong), "{wrong:?}");
    }
    assert!(!carries(&HeaderMap::new(), &token));
}

#[test]
fn events_wait_from_the_first_look_that_saw_them_to_the_next_commit() {
    let mut progress = Progress::default();
    let mut status = running();
    assert_eq!(progress.observe(&status, 1_000), None, "nothing was read");
    status.events = 10;
    assert_eq!(progress.observe(&status, 2_000), Some(Duration::ZERO));
    status.events = 20;
    let two = Some(Duration::from_secs(2));
    assert_eq!(
        progress.observe(&status, 4_000),
        two,
        "later events do not restart it"
    );
    assert_eq!(
        progress.observe(&status, 1_500),
        Some(Duration::ZERO),
        "a clock may step back"
    );
    status.last_commit_ms = 5_000;
    assert_eq!(progress.observe(&status, 5_500), None);
    assert_eq!(
        progress.observe(&status, 900_000),
        None,
        "a quiet source is never overdue"
    );
    status.events = 21;
    assert_eq!(progress.observe(&status, 900_500), Some(Duration::ZERO));
}

#[test]
fn ready_is_connected_and_on_time() {
    let of = |status: &Status, waiting| not_ready(status, waiting, MINUTE);
    let ready = running();
    assert!(of(&ready, None).is_empty());
    assert!(of(&ready, Some(MINUTE)).is_empty(), "not yet overdue");
    let overdue = of(&ready, Some(MINUTE + Duration::from_secs(1)));
    assert_eq!(overdue, ["a commit is overdue: waiting_s=61 allowed_s=60"]);

    let behind = Status {
        behind: true,
        ..ready.clone()
    };
    assert_eq!(of(&behind, None).len(), 1);
    let apart = Status {
        connected: false,
        ..ready.clone()
    };
    assert_eq!(of(&apart, None), ["the source is not connected"]);
    for state in ["starting", "stopping", "failed"] {
        let reasons = of(
            &Status {
                state,
                ..ready.clone()
            },
            None,
        );
        assert_eq!(
            reasons,
            [format!("the pipeline does not run: state={state}")]
        );
    }
    let done = Status {
        state: "done",
        connected: false,
        ..ready
    };
    assert!(
        of(&done, None).is_empty(),
        "all that there was is committed"
    );
    assert_eq!(of(&Metrics::new("a", "main").status(), None).len(), 2);
}

#[tokio::test]
async fn the_pages_answer() {
    let server = serve();
    let metrics = server.metrics.clone();
    let stop = CancellationToken::new();
    let listen = "127.0.0.1:0".parse().expect("an address");
    let bound = Bound::to(listen, None).await.expect("a free port");
    let address = server.start(bound, stop.clone());

    assert_eq!(request(address, "GET /health", "").await.2, "ok");
    let (code, _, body) = request(address, "GET /ready", "").await;
    assert_eq!(code, 503);
    let body: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(body["ready"], false);
    assert_eq!(body["reasons"][1], "the source is not connected");

    metrics.set_state("running");
    metrics.set_connected(true);
    metrics.received(41, 4100, 1);
    let (code, _, body) = request(address, "GET /ready", "").await;
    assert_eq!(
        (code, body.as_str()),
        (200, r#"{"ready":true,"reasons":[]}"#)
    );

    let (code, head, body) = request(address, "GET /metrics", "").await;
    assert_eq!(code, 200);
    assert!(
        head.contains(&format!("content-type: {OPENMETRICS}")),
        "{head}"
    );
    assert!(body.contains("calve_events_received_total{"), "{body}");
    assert!(body.ends_with("# EOF\n"), "{body}");

    let (code, head, body) = request(address, "GET /api/status", "").await;
    assert_eq!(code, 200);
    assert!(head.contains("content-type: application/json"), "{head}");
    let body: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(
        (&body["pipeline"], &body["events"]),
        (&json!("orders"), &json!(41))
    );
    assert_eq!(body["figures"]["buckets"][0]["n"], 7);

    let (code, _, page) = request(address, "GET /", "").await;
    assert_eq!(code, 200);
    assert!(page.contains("href=\"/api/status\""));
    assert_eq!(request(address, "GET /nowhere", "").await.0, 404);
    assert_eq!(request(address, "POST /api/status", "").await.0, 405);

    stop.cancel();
    for _ in 0..1000 {
        if TcpStream::connect(address).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("still listens after it was stopped");
}

#[tokio::test]
async fn a_token_guards_all_but_health() {
    let stop = CancellationToken::new();
    let started = start("0.0.0.0:0", Some("s3cret"), &stop).await;
    let port = started.expect("starts").port();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    for path in ["/", "/ready", "/metrics", "/api/status"] {
        let line = format!("GET {path}");
        for headers in ["", "Authorization: Bearer wrong\r\n"] {
            let (code, head, body) = request(address, &line, headers).await;
            assert_eq!(code, 401, "{path}");
            assert!(head.contains("www-authenticate: bearer"), "{head}");
            assert!(
                !body.contains("calve") && !body.contains("s3cret"),
                "{body}"
            );
        }
        let (code, ..) = request(address, &line, "Authorization: Bearer s3cret\r\n").await;
        assert_ne!(code, 401, "{path}");
    }
    assert_eq!(request(address, "GET /health", "").await.0, 200);
    stop.cancel();
}

#[tokio::test]
async fn a_taken_port_is_a_matter_of_configuration() {
    let stop = CancellationToken::new();
    let first = start("127.0.0.1:0", None, &stop).await.expect("starts");
    let second = start(&first.to_string(), None, &stop).await;
    let error = second.expect_err("the port is taken");
    assert_eq!(error.kind(), calve_engine::ErrorKind::Config);
    assert!(error.message().contains(&first.to_string()), "{error}");
    assert!(
        error
            .hint_text()
            .is_some_and(|hint| hint.contains("serve.listen"))
    );
    stop.cancel();
}

#[tokio::test]
async fn metrics_may_have_an_address_of_their_own() {
    let stop = CancellationToken::new();
    let any = || "127.0.0.1:0".parse().expect("an address");
    let metrics = Bound::to(any(), Some("secret")).await.expect("a free port");
    let address = metrics.address;
    let bound = Bound::to(any(), Some("secret")).await.expect("a free port");
    serve().start(bound.and_metrics(metrics), stop.clone());
    assert_eq!(request(address, "GET /health", "").await.0, 200);
    assert_eq!(request(address, "GET /metrics", "").await.0, 401);
    let token = "Authorization: Bearer secret\r\n";
    assert_eq!(request(address, "GET /metrics", token).await.0, 200);
    assert_eq!(request(address, "GET /api/status", token).await.0, 404);
    stop.cancel();
}
