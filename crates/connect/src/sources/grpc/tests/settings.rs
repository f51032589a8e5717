//! Settings: what is sent to the server, and what is refused.

use super::*;

#[test]
fn credentials_are_sent_and_never_shown() {
    let server = Server::start(|_, start| ledgers(&[1], start));
    let more =
        format!("{RESUME}, token: 's3cret ', metadata: {{ X-Tenant: t7, X-Trace-Bin: 'AP9i' }}");
    let config = server.config(&more);
    read(&mut server.source(&more), &Offsets::default()).expect("read");
    let headers = server.asked.lock()[0].1.clone();
    assert_eq!(headers["authorization"], "Bearer s3cret");
    assert_eq!(headers["x-tenant"], "t7");
    let bytes = tonic::metadata::MetadataMap::from_headers(headers);
    let bytes = bytes.get_bin("x-trace-bin").expect("sent").to_bytes();
    assert_eq!(bytes.expect("bytes"), [0, 0xff, b'b'].as_slice());
    let shown = format!(
        "{config:?} {}",
        serde_json::to_string(&config).expect("JSON")
    );
    assert!(
        !shown.contains("s3cret") && !shown.contains("t7"),
        "{shown}"
    );
    assert!(!config.fingerprint().contains("s3cret"));
}

#[test]
fn wrong_settings_are_refused() {
    let parse = |more: &str| {
        let yaml = format!("{{ endpoint: 'http://h:1', method: p.E/Get, {more} }}");
        serde_yaml_ng::from_str::<GrpcConfig>(&yaml).expect("a config")
    };
    let good = "proto: p.proto, resume: { request_field: start, from_column: ledger }";
    assert!(parse(good).validate().is_ok());
    for (more, why) in [
        ("proto: p.proto".to_owned(), "events would be lost"),
        (good.replace("proto: p.proto, ", ""), "nothing says"),
        (format!("{good}, reflection: true"), "both reflection"),
        (format!("{good}, lossy: true"), "both `resume`"),
        (format!("{good}, tls: {{ ca: c }}"), "has none"),
        (
            format!("{good}, token: s3cret-a, metadata: {{ Authorization: b }}"),
            "both token",
        ),
        (
            format!("{good}, metadata: {{ 'a b': c }}"),
            "name of metadata",
        ),
        (
            format!("{good}, metadata: {{ a-bin: 'no base64' }}"),
            "value of metadata",
        ),
        (
            format!("{good}, metadata: {{ grpc-timeout: 1S }}"),
            "name of metadata",
        ),
        (format!("{good}, keep_alive: 0s"), "keep_alive is zero"),
        (format!("{good}, batch_bytes: 0"), "batch_bytes is zero"),
        (format!("{good}, batch_bytes: 448MiB"), "not below 512MiB"),
        (
            good.replace("ledger }", "ledger, max_group_bytes: 511MiB }"),
            "not below 512MiB",
        ),
        (
            "proto: p.proto, lossy: true, max_message_size: 511MiB".to_owned(),
            "not below 512MiB",
        ),
        (
            format!("{good}, max_message_size: 512MiB"),
            "max_message_size is not below 512MiB",
        ),
        (format!("{good}, token: ' '"), "token is empty"),
    ] {
        let error = parse(&more).validate().expect_err(&more);
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.message().contains(why), "{more}: {error}");
        assert!(!error.message().contains("s3cret-a"));
    }
    let mut config = parse(good);
    for (endpoint, fine) in [
        ("https://h", true),
        ("http://h:1", true),
        ("h:1", false),
        ("ftp://h", false),
        ("http://user:pass@h", false),
        ("", false),
    ] {
        config.endpoint = endpoint.to_owned();
        assert_eq!(config.validate().is_ok(), fine, "{endpoint}");
    }
}

#[test]
fn only_the_bound_of_a_request_may_change_and_nothing_of_it_is_kept_in_clear() {
    let print = |request: &str, until: &str| {
        let yaml = format!(
            "{{ endpoint: 'http://h:1', method: p.E/Get, proto: p, request: {request}, \
             resume: {{ request_field: start, from_column: ledger, until_field: {until} }} }}"
        );
        let config = serde_yaml_ng::from_str::<GrpcConfig>(&yaml).expect("a config");
        config.fingerprint()
    };
    let first = print("{ start: 1, account: GSECRET }", "end_ledger");
    assert!(!first.contains("GSECRET"), "{first}");
    for same in [
        "{ account: GSECRET, start: 1 }",
        "{ start: 1, account: GSECRET, end_ledger: 7 }",
        "{ start: 1, account: GSECRET, endLedger: 7 }",
    ] {
        assert_eq!(print(same, "end_ledger"), first, "{same}");
        assert_eq!(print(same, "endLedger"), first, "{same}");
    }
    for other in [
        "{ start: 2, account: GSECRET }",
        "{ start: 1, account: GOTHER }",
        "{ start: 1, account: GSECRET, range: { end_ledger: 7 } }",
    ] {
        assert_ne!(print(other, "end_ledger"), first, "{other}");
    }
    // Within messages of the request.
    let nested = "range.lastOne.number";
    let first = print("{ start: 1, range: { first: 2 } }", nested);
    for same in [
        "{ start: 1, range: { first: 2, last_one: { number: 3 } } }",
        "{ start: 1, range: { lastOne: { number: 4 }, first: 2 } }",
    ] {
        assert_eq!(print(same, nested), first, "{same}");
    }
    let alone = print("{ start: 1 }", nested);
    assert_eq!(
        print("{ start: 1, range: { last_one: { number: 3 } } }", nested),
        alone
    );
    assert_ne!(first, alone);
}

#[test]
fn descriptors_come_from_servers_of_both_reflections() {
    let set = pool().encode_to_vec();
    let builder = || {
        tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(&set)
    };
    for version in ["v1", "v1alpha", "none"] {
        let described = block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
            let listener = listener.expect("a port");
            let address = listener.local_addr().expect("an address");
            let mut server = tonic::transport::Server::builder();
            let router = match version {
                "v1" => server.add_service(builder().build_v1().expect("descriptors")),
                "v1alpha" => server.add_service(builder().build_v1alpha().expect("descriptors")),
                // A server that knows neither.
                _ => server.add_service(Scripted {
                    script: Arc::new(|_, _| vec![Act::Fail(Code::Unimplemented)]),
                    asked: Arc::default(),
                    sent: Arc::default(),
                }),
            };
            tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
            let yaml = format!(
                "{{ endpoint: 'http://{address}', method: p.Events/Get, reflection: true, {RESUME} }}"
            );
            let config = serde_yaml_ng::from_str::<GrpcConfig>(&yaml).expect("a config");
            describe(&config, Path::new("")).await
        });
        match described {
            Ok((_, message)) => {
                assert_ne!(version, "none");
                assert_eq!(message.full_name(), "p.Event");
            }
            Err(error) => {
                assert_eq!(version, "none", "{error}");
                assert!(error.message().contains("has no reflection"), "{error}");
            }
        }
    }
}
