//! Messages as JSON text: google.protobuf.Struct, Value, ListValue and Any, which have no columns of
//! their own, and messages that a column asks for as text. Slow; the mapping is ProtoJSON's, with
//! fields under the names that the `.proto` file has.

use prost::Message;
use prost_reflect::{DynamicMessage, MessageDescriptor, SerializeOptions};

/// Appends the JSON of a message's bytes; an error says why there is none.
pub(super) fn write(
    message: &MessageDescriptor,
    bytes: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), String> {
    let decoded = DynamicMessage::decode(message.clone(), bytes);
    let Ok(decoded) = decoded else {
        return Err("the message is malformed".to_owned());
    };
    let options = SerializeOptions::new().use_proto_field_name(true);
    let before = out.len();
    let written =
        decoded.serialize_with_options(&mut serde_json::Serializer::new(&mut *out), &options);
    if written.is_ok() {
        return Ok(());
    }
    out.truncate(before);
    match message.full_name() {
        // A value of no kind, as a message that is empty on the wire.
        "google.protobuf.Value" if bytes.is_empty() => {
            out.extend_from_slice(b"null");
            Ok(())
        }
        "google.protobuf.Any" => unknown_any(bytes, out),
        _ => Err("the message has no JSON form".to_owned()),
    }
}

/// Any of a type that is not among the descriptors: its URL, and its bytes as base64.
fn unknown_any(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
    let any = prost_types::Any::decode(bytes).map_err(|_| "the message is malformed".to_owned())?;
    let value = serde_json::json!({ "@type": any.type_url, "value": base64(&any.value) });
    out.extend_from_slice(value.to_string().as_bytes());
    Ok(())
}

/// Base64 with padding, as RFC 4648 has it.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let at = |n: usize| u32::from(three.get(n).copied().unwrap_or_default());
        let word = at(0) << 16 | at(1) << 8 | at(2);
        for n in 0..4 {
            if n <= three.len() {
                text.push(char::from(DIGITS[(word >> (18 - 6 * n) & 63) as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_every_length() {
        let of = |text: &str| base64(text.as_bytes());
        assert_eq!(of(""), "");
        assert_eq!(of("f"), "Zg==");
        assert_eq!(of("fo"), "Zm8=");
        assert_eq!(of("foo"), "Zm9v");
        assert_eq!(of("foobar"), "Zm9vYmFy");
        assert_eq!(base64(&[0xfb, 0xff]), "+/8=");
    }
}
