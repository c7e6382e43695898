//! Base64 with one text for each byte string.

use data_encoding::BASE64;

/// Bytes of padded base64.
///
/// The encoding itself takes several padded texts one after another; here padding ends the text, so
/// that nobody can write a key, hash or signature in two ways.
pub(crate) fn decode(digits: &str) -> Option<Vec<u8>> {
    if digits.trim_end_matches('=').contains('=') {
        return None;
    }
    BASE64.decode(digits.as_bytes()).ok()
}
