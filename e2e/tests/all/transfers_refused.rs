//! Token transfers over gRPC where something is wrong that will not pass: it is said, with the way out,
//! and stops the run or is a reject. Events, ranges, credentials, certificates.

use std::fs;

use bytes::Bytes;
use calve_e2e::{
    Sink,
    transfers::{
        Fault, Server, Settings, What,
        pipeline::{FIRST, Place, generated, range, whole},
    },
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

#[test]
fn what_is_wrong_is_said_and_stops_or_is_rejected() {
    let root = tempfile::tempdir().expect("a folder");
    let mut bad = generated().decoded(FIRST + 2).remove(0);
    if let Some(meta) = &mut bad.meta {
        meta.tx_hash = "abc".to_owned();
    }
    let bad = Bytes::from(prost::Message::encode_to_vec(&bad));
    let fault = |what| Settings {
        faults: vec![Fault {
            ledger: FIRST + 2,
            after: 4,
            what,
        }],
        ..Settings::default()
    };
    let run = |name: &str, endpoint: &str, source: &str| {
        let place = Place::new(root.path().join(name), Sink::Iceberg);
        place.write(endpoint, source, "");
        let status = place.start("").wait();
        (status.code(), place)
    };
    let some = range(FIRST, FIRST + 4);

    // One that is no message at all, and one without the ledger that it is of.
    for (name, poison) in [("garbage", vec![0x0a, 0xff, 0xff]), ("empty", Vec::new())] {
        let server = Server::start(generated(), fault(What::Message(poison.into())));
        let (code, place) = run(name, &server.endpoint(), &some);
        assert_eq!(code, Some(0), "{name}: {}", place.log());
        let found = place.read();
        assert_eq!(
            found["rejects"].as_array().map(Vec::len),
            Some(1),
            "{name}: {found}"
        );
    }

    let server = Server::start(generated(), fault(What::Message(bad)));
    let (code, place) = run("hash", &server.endpoint(), &some);
    assert_eq!(code, Some(0), "{}", place.log());
    let found = place.read();
    let rejects = found["rejects"].as_array().expect("rejects");
    assert_eq!(rejects.len(), 1, "{found}");
    let error = rejects[0]["error"].as_str().expect("text");
    assert!(
        error.contains("tx_hash") && !error.contains("abc"),
        "{error}"
    );
    assert_eq!(rejects[0]["offset"], FIRST + 2);

    let server = Server::start(
        generated(),
        fault(What::Message(Bytes::from(vec![0; 9 << 20]))),
    );
    let (code, place) = run("large", &server.endpoint(), &some);
    assert_eq!(code, Some(2), "{}", place.log());
    assert!(
        place.log().contains("raise `max_message_size`"),
        "{}",
        place.log()
    );

    let settings = Settings {
        token: Some("letmein".to_owned()),
        ..Settings::default()
    };
    let server = Server::start(generated(), settings);
    let (code, place) = run("stranger", &server.endpoint(), &some);
    assert_eq!(code, Some(2), "{}", place.log());
    assert!(place.log().contains("UNAUTHENTICATED"), "{}", place.log());
    let (code, place) = run(
        "guest",
        &server.endpoint(),
        &format!("{some}, token: letmein"),
    );
    assert_eq!(code, Some(0), "{}", place.log());
    assert!(!place.log().contains("letmein"));

    // Before anything is connected: nobody listens there.
    for (source, why) in [
        (range(9, 8), "end_ledger is before start_ledger"),
        (range(0, 8), "start_ledger is 0"),
    ] {
        let (code, place) = run("range", "http://127.0.0.1:1", &source);
        assert_eq!(code, Some(2), "{}", place.log());
        assert!(place.log().contains(why), "{}", place.log());
    }
    let (code, place) = run("nobody", "http://127.0.0.1:1", &some);
    assert_eq!(code, Some(1), "{}", place.log());
    assert!(place.log().contains("cannot connect"), "{}", place.log());
    assert!(!place.dir.join("lake").exists(), "nothing is made");
}

#[test]
fn tls_needs_a_certificate_that_is_trusted() {
    let root = tempfile::tempdir().expect("a folder");
    let made = rcgen::generate_simple_self_signed(vec!["transfers.test".to_owned()]);
    let made = made.expect("a certificate");
    let pem = made.cert.pem();
    let settings = Settings {
        tls: Some((pem.clone(), made.signing_key.serialize_pem())),
        ..Settings::default()
    };
    let server = Server::start(generated(), settings);
    let endpoint = server.endpoint().replace("http://", "https://");
    let ca = root.path().join("ca.pem");
    fs::write(&ca, pem).expect("write");
    let some = range(FIRST, FIRST + 4);
    let place = Place::new(root.path().join("trusting"), Sink::Iceberg);
    let tls = format!(
        "{some}, tls: {{ ca: \"{}\", domain: transfers.test }}",
        ca.display()
    );
    place.write(&endpoint, &tls, "");
    place.run();
    assert_eq!(
        place.read()["ledgers"],
        whole(&generated(), FIRST, FIRST + 4)
    );
    let place = Place::new(root.path().join("careful"), Sink::Iceberg);
    place.write(
        &endpoint,
        &format!("{some}, tls: {{ domain: transfers.test }}"),
        "",
    );
    let status = place.start("").wait();
    assert_eq!(status.code(), Some(1), "{}", place.log());
    assert!(
        place.log().contains("invalid peer certificate"),
        "{}",
        place.log()
    );
    assert!(place.log().contains("`tls.ca` says"), "{}", place.log());
}

/// A signer of certificates, and one for a name that it signed: certificate and key.
fn signed(name: &str, signer: &str) -> (String, (String, String)) {
    let ca_key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, signer);
    let ca = params.self_signed(&ca_key).expect("a certificate").pem();
    let key = KeyPair::generate().expect("a key");
    let own = CertificateParams::new(vec![name.to_owned()]).expect("a name");
    let own = own.signed_by(&key, &Issuer::new(params, ca_key));
    let own = own.expect("a certificate").pem();
    (ca, (own, key.serialize_pem()))
}

#[test]
fn a_server_that_wants_a_certificate_gets_one_or_says_so() {
    let root = tempfile::tempdir().expect("a folder");
    let (ca, server) = signed("transfers.test", "servers");
    let (client_ca, (cert, key)) = signed("calve.test", "clients");
    let (_, (foreign_cert, foreign_key)) = signed("calve.test", "others");
    // By one of the right name, which is not the one.
    let (_, (false_cert, false_key)) = signed("calve.test", "clients");
    for (name, pem) in [
        ("ca.pem", &ca),
        ("cert.pem", &cert),
        ("key.pem", &key),
        ("foreign-cert.pem", &foreign_cert),
        ("foreign-key.pem", &foreign_key),
        ("false-cert.pem", &false_cert),
        ("false-key.pem", &false_key),
    ] {
        fs::write(root.path().join(name), pem).expect("write");
    }
    let settings = Settings {
        tls: Some(server),
        client_ca: Some(client_ca),
        ..Settings::default()
    };
    let server = Server::start(generated(), settings);
    let endpoint = server.endpoint().replace("http://", "https://");
    let file = |name: &str| root.path().join(name).display().to_string();
    let run = |name: &str, own: Option<&str>| {
        let place = Place::new(root.path().join(name), Sink::Iceberg);
        let some = format!("{}, retry_for: 15s", range(FIRST, FIRST + 4));
        let own = own.map_or_else(String::new, |own| {
            let (cert, key) = (format!("{own}cert.pem"), format!("{own}key.pem"));
            format!(", cert: \"{}\", key: \"{}\"", file(&cert), file(&key))
        });
        let ca = file("ca.pem");
        let tls = format!("{some}, tls: {{ ca: \"{ca}\", domain: transfers.test{own} }}");
        place.write(&endpoint, &tls, "");
        (place.start("").wait().code(), place)
    };
    let (code, place) = run("known", Some(""));
    assert_eq!(code, Some(0), "{}", place.log());
    let found = place.read();
    assert_eq!(found["ledgers"], whole(&generated(), FIRST, FIRST + 4));

    for own in [None, Some("foreign-"), Some("false-")] {
        let name = own.unwrap_or("unknown");
        let (code, place) = run(name, own);
        let log = place.log();
        assert_eq!(code, Some(2), "{name}: {log}");
        assert!(log.contains("certificate"), "{name}: {log}");
        assert!(log.contains("`tls.cert`"), "{name}: the hint: {log}");
        assert!(!log.contains("the stream is interrupted"), "{name}: {log}");
        assert!(!log.contains("BEGIN"), "{name}: {log}");
    }
    assert_eq!(server.asked().len(), 1);
}
