//! What should not come, and comes.

use super::*;

const YAML: &str = "{columns: {id: int, v: varchar}, metadata: [source.lsn]}";

#[test]
fn what_is_no_change_is_a_reject_with_its_place() {
    let cases = [
        ("7", "expected an object"),
        ("[]", "expected an object"),
        ("\"c\"", "expected an object"),
        ("nul", "expected an object"),
        ("null null", "something follows the object"),
        (
            "{}",
            "not a change: it has no `op` (rows without envelope need `unwrapped: true`)",
        ),
        (
            r#"{"id":1,"v":"a"}"#,
            "not a change: it has no `op` (rows without envelope need `unwrapped: true`)",
        ),
        (
            r#"{"payload":{"payload":{"op":"c"}}}"#,
            "not a change: it has no `op`",
        ),
        (
            r#"{"schema":{},"payload":{"id":1}}"#,
            "not a change: it has no `op` (rows without envelope need `unwrapped: true`)",
        ),
        (
            r#"{"schema":{},"payload":null"#,
            "something follows the payload",
        ),
        (
            r#"{"schema":{},"payload":null,"x":1}"#,
            "something follows the payload",
        ),
        (r#"{"op":"c"}"#, "after is missing"),
        (r#"{"op":"c","after":null}"#, "after is missing"),
        (r#"{"op":"u","after":7}"#, "field=after: expected an object"),
        (
            r#"{"op":"u","after":{"id":"x"}}"#,
            "field=after.id: the value does not fit Int32",
        ),
        (
            r#"{"op":"d","before":{"id":1.5},"after":null}"#,
            "field=before.id: the value does not fit Int32",
        ),
        (
            r#"{"op":"d","before":[]}"#,
            "field=before: expected an object",
        ),
        (
            r#"{"op":"k","after":{"id":1}}"#,
            "op is none of c, u, d, r, t, m",
        ),
        (
            r#"{"op":"cc","after":{"id":1}}"#,
            "op is none of c, u, d, r, t, m",
        ),
        (
            r#"{"op":"","after":{"id":1}}"#,
            "op is none of c, u, d, r, t, m",
        ),
        (
            r#"{"op":null,"after":{"id":1}}"#,
            "op is none of c, u, d, r, t, m",
        ),
        (
            r#"{"op":{"c":"c"},"after":{"id":1}}"#,
            "op is none of c, u, d, r, t, m",
        ),
        (
            r#"{"op":"c","after":{"id":1},"source":3}"#,
            "field=source: expected an object, got a number",
        ),
        (
            r#"{"op":"c","after":{"id":1},"source":{"lsn":"x"}}"#,
            "field=source.lsn: the value does not fit Int64",
        ),
        (
            r#"{"op":"c","after":{"id":1},"source":{"lsn":1}"#,
            "expected a comma or the object's end",
        ),
        (
            r#"{"op":"c","after":{"id":1},"before":{"x":}}"#,
            "expected a value, got no value",
        ),
        (
            r#"{"op":"c","after":{"id":1}} {}"#,
            "something follows the object",
        ),
        ("{\"op\":\"", "field"),
    ];
    // Each of them between two good ones, which must not notice.
    let good = r#"{"before":null,"after":{"id":1,"v":"a"},"source":{"lsn":3},"op":"c"}"#;
    let (mut text, mut places) = (String::new(), Vec::new());
    for (line, _) in cases {
        text += &format!("{good}\n");
        places.push(text.len() as u64);
        text += &format!("{line}\n");
    }
    text += good;
    let mut decoder = decoder(&config(YAML));
    for _ in 0..2 {
        let decoded = decoder.decode(&raw(&text, 0)).expect("rows");
        assert_eq!(decoded.rows.num_rows(), cases.len() + 1);
        assert!(
            values(&decoded.rows, "source.lsn")
                .iter()
                .all(|lsn| lsn == "3")
        );
        let offsets: Vec<u64> = decoded.rejects.iter().map(|reject| reject.offset).collect();
        assert_eq!(offsets, places);
        for ((line, error), reject) in cases.iter().zip(&decoded.rejects) {
            assert_eq!(reject.raw, line.as_bytes());
            if *error != "field" {
                assert_eq!(&reject.error, error, "{line}");
            }
        }
    }
}

#[test]
fn the_last_of_a_key_counts() {
    let lines = [
        r#"{"op":"d","op":"c","after":{"id":1},"after":{"id":2},"ts_ms":1}"#,
        r#"{"after":{"id":3},"after":null,"op":"d","before":{"id":9},"before":{"id":4}}"#,
        r#"{"source":{"lsn":1},"source":{"lsn":2},"source":null,"op":"c","after":{"id":5}}"#,
        r#"{"op":"c","after":{"id":6},"source":{"lsn":1,"lsn":2}}"#,
        r#"{"\u006fp":"\u0063","after":{"id":7}}"#,
    ];
    let mut decoder = decoder(&config(YAML));
    for _ in 0..3 {
        let decoded = decoder.decode(&raw(&lines.join("\n"), 0)).expect("rows");
        assert_eq!(errors(&decoded), [""; 0]);
        assert_eq!(values(&decoded.rows, "id"), ["2", "4", "5", "6", "7"]);
        assert_eq!(
            values(&decoded.rows, "source.lsn"),
            ["null", "null", "null", "2", "null"]
        );
    }
}

#[test]
fn lines_cut_anywhere() {
    let line = r#"{"schema":{"type":"struct","fields":[]},"payload":{"before":{"id":1,"v":"a\n"},"after":null,"source":{"x":[1,{}],"lsn":3},"op":"d"}}"#;
    let next = r#"{"op":"c","after":{"id":2}}"#;
    let mut decoder = decoder(&config(YAML));
    for end in 1..line.len() {
        let text = format!("{}\n{next}\n", &line[..end]);
        let decoded = decoder.decode(&raw(&text, 0)).expect("rows");
        assert_eq!(values(&decoded.rows, "id"), ["2"], "{end}");
        assert_eq!(decoded.rejects.len(), 1, "{end}");
        // And as the last line of a file.
        let decoded = decoder.decode(&raw(&line[..end], 0)).expect("rows");
        assert_eq!(
            (decoded.rows.num_rows(), decoded.rejects.len()),
            (0, 1),
            "{end}"
        );
    }
    let mut damaged = format!("{line}\n").into_bytes();
    damaged[100] = 0xff;
    damaged.extend_from_slice(format!("{next}\n{line}").as_bytes());
    let decoded = decoder.decode_lines(&damaged, 40).expect("rows");
    assert_eq!(values(&decoded.rows, "id"), ["2", "1"]);
    assert_eq!(
        (decoded.rejects[0].offset, errors(&decoded)),
        (40, vec!["the line is not utf-8"])
    );
}

#[test]
fn depth_and_size_are_no_danger() {
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let long = "x".repeat(5 << 20);
    let lines = [
        format!(r#"{{"op":"c","after":{{"id":1}},"source":{deep}}}"#),
        format!(r#"{{"schema":{deep},"payload":{{"op":"c","after":{{"id":1}}}}}}"#),
        format!(r#"{{"schema":{{"type":{deep}}},"payload":null}}"#),
        format!(
            r#"{{"op":"c","after":{}}}"#,
            serde_json::Value::from(format!("{{\"id\":{deep}}}"))
        ),
        format!(r#"{{"op":"c","after":{{"id":2,"v":"{long}"}}}}"#),
    ];
    let decoded = decode(YAML, &lines.join("\n"));
    assert_eq!(values(&decoded.rows, "id"), ["2"]);
    assert_eq!(decoded.rejects.len(), 4);
}
