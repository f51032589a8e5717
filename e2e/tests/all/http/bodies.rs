//! What a body may be, and what is refused.

use super::*;

#[test]
fn limits_tokens_and_tls_by_another_client() {
    let dir = tempfile::tempdir().expect("a folder");
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]);
    let made = made.expect("a certificate");
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    fs::write(&cert, made.cert.pem()).expect("write");
    fs::write(&key, made.signing_key.serialize_pem()).expect("write");
    let source = format!(
        ", tokens: [\"first\", \"s3cret\"], tls: {{ cert: \"{}\", key: \"{}\" }}, max_body: 1MiB, max_decompressed: 32MiB",
        cert.display(),
        key.display()
    );
    let place = Place::new(dir.path(), Sink::Parquet, &source, FAST);
    let running = place.start("");
    let spec = json!({ "do": "talk", "port": place.port, "ca": cert, "token": "s3cret" });
    let found = python("http_source.py", &[spec]).remove(0);
    let none = Value::Null;
    let refused = |status: u16, lines: &[u32]| json!([status, none, lines]);
    assert_eq!(
        found,
        json!({
            "lines": [200, 2, []],
            "array": [200, 2, []],
            "object": [200, 1, []],
            "gzip": [200, 1, []],
            "zstd": [200, 1, []],
            "bad": refused(400, &[2, 4]),
            "no token": refused(401, &[]),
            "bad token": refused(401, &[]),
            "type": refused(415, &[]),
            "encoding": refused(415, &[]),
            "gzip bomb": refused(413, &[]),
            "zstd bomb": refused(413, &[]),
            "too large": refused(413, &[]),
            "too deep": refused(400, &[1]),
            "no gzip": refused(400, &[]),
            "without tls": "closed",
        })
    );
    assert!(running.terminate().success(), "{}", place.log());
    assert_eq!(place.ids(), (1..=7).collect::<Vec<_>>());
    assert!(!place.log().contains("s3cret"));
}

#[test]
fn arrow_streams_and_requests_of_which_the_rest_is_taken() {
    let dir = tempfile::tempdir().expect("a folder");
    let place = Place::new(dir.path(), Sink::Parquet, "", FAST);
    place.write("arrow", ", on_bad_event: accept_rest", FAST);
    let running = place.start("");
    let spec = json!({ "do": "arrow", "port": place.port });
    let found = python("http_source.py", &[spec]).remove(0);
    assert_eq!(found["good"], json!([200, 3, []]));
    assert_eq!(found["narrow"], json!([200, 2, []]));
    assert_eq!(found["some bad"], json!([200, 2, [2]]));
    for wrong in ["packed", "cut", "nothing"] {
        assert_eq!(found[wrong], json!([400, null, []]), "{wrong}");
    }
    assert!(running.terminate().success(), "{}", place.log());
    assert_eq!(place.ids(), [1, 2, 3, 4, 5, 6, 8]);
}

#[test]
fn a_schema_is_inferred_from_the_first_requests_and_evolves() {
    let dir = tempfile::tempdir().expect("a folder");
    let place = Place::new(dir.path(), Sink::Iceberg, "", FAST);
    infer_schema(&place);
    let running = place.start("");
    let mut connection = Client::new(place.port);
    // The schema is not known: what is no object is refused all the same.
    assert_eq!(
        connection.post("", b"[1]\n").expect("an answer").status,
        400
    );
    let answer = connection.post("", &events(0, 100)).expect("an answer");
    assert_eq!(answer.status, 200);
    let inferred = (0..1200).find(|_| {
        pause(50);
        place.log().contains("inferred schema")
    });
    assert!(inferred.is_some(), "{}", place.log());
    // Once the schema is known, a text is no id.
    let refused = (0..1200).find(|_| {
        pause(50);
        let bad = connection.post("", b"{\"id\":\"none\",\"region\":\"eu\"}\n");
        bad.is_ok_and(|answer| answer.status == 400)
    });
    assert!(refused.is_some(), "{}", place.log());
    let more = b"{\"id\":100,\"region\":\"eu\",\"amount\":1.5,\"sku\":\"new\"}\n";
    connection.post_until_taken("more", more);
    for n in 1..50 {
        connection.post_until_taken(&format!("k{n}"), &events(100 + n, 1));
    }
    // A stop does not wait for the schema to evolve: the next start would do it.
    let expected: Vec<u64> = (0..150).collect();
    let written = (0..120).find(|_| {
        pause(200);
        place.log().contains("committed") && place.ids() == expected
    });
    assert!(written.is_some(), "{}", place.log());
    assert!(running.terminate().success(), "{}", place.log());
    assert!(place.log().contains("evolves"), "{}", place.log());
    assert_eq!(place.ids(), expected, "{}", place.log());
}

fn varint(mut n: u64, into: &mut Vec<u8>) {
    while n >= 0x80 {
        into.push(n as u8 | 0x80);
        n >>= 7;
    }
    into.push(n as u8);
}

/// A message of `shop.Order`, as its encoding is defined.
fn message(id: u64) -> Vec<u8> {
    let mut bytes = vec![0x08];
    varint(id, &mut bytes);
    bytes.extend([0x12, 2]);
    bytes.extend(b"eu");
    bytes.push(0x19);
    bytes.extend(1.5_f64.to_le_bytes());
    bytes
}

#[test]
fn messages_of_protobuf_behind_their_lengths_or_one_alone() {
    let dir = tempfile::tempdir().expect("a folder");
    let place = Place::new(dir.path(), Sink::Iceberg, "", FAST);
    let proto = place.dir.join("shop.proto");
    let text = "syntax = \"proto3\"; package shop;\n\
         message Order { int64 id = 1; string region = 2; double amount = 3; }\n";
    fs::write(&proto, text).expect("write");
    let text = fs::read_to_string(place.file()).expect("read");
    let json = text.lines().find(|line| line.starts_with("format:"));
    let format = format!(
        "format: {{ protobuf: {{ message: shop.Order, proto: \"{}\" }} }}",
        proto.display()
    );
    let text = text.replace(json.expect("a format"), &format);
    fs::write(place.file(), text).expect("write");
    let running = place.start("");
    let mut client = Client::new(place.port);
    let mut post = |kind: &str, body: &[u8]| {
        let answer = client.post_as(kind, "", body).expect("an answer");
        (answer.status, answer.body["accepted"].as_u64())
    };
    let (single, many) = (
        "application/x-protobuf",
        "application/x-protobuf; encoding=delimited",
    );
    let mut delimited = Vec::new();
    for id in 1..=1000 {
        let one = message(id);
        varint(one.len() as u64, &mut delimited);
        delimited.extend(one);
    }
    assert_eq!(post(many, &delimited), (200, Some(1000)));
    assert_eq!(post(single, &message(0)), (200, Some(1)));
    assert_eq!(post("application/protobuf", &message(1001)), (200, Some(1)));
    // Cut in the middle of a message; no message at all; lines.
    let cut = &delimited[..delimited.len() - 3];
    assert_eq!(post(many, cut).0, 400);
    assert_eq!(post(single, b"\x08").0, 400);
    assert_eq!(post("application/x-ndjson", &events(5, 1)).0, 415);
    assert!(running.terminate().success(), "{}", place.log());
    assert_eq!(place.ids(), (0..=1001).collect::<Vec<_>>());
}
