//! What came instead of an answer, and what it means. Pure.

use std::error::Error;
use std::io;
use std::iter::successors;
use std::time::Duration;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use super::super::{BucketError, Operation};

/// What is asked of which bucket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) operation: Operation,
    /// As the caller names it.
    pub(super) key: &'a str,
    /// The name of the bucket for errors.
    pub(super) bucket: &'a str,
}

/// How an attempt failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nothing was sent, since nothing was answered lately.
    BreakerOpen(String),
    /// Nothing was sent: there was no connection.
    NotSent(String),
    /// All or a part was sent, and the connection ended without an answer.
    Silent(String),
    /// All or a part was sent, and no answer came in time.
    TooLate(String),
    /// The server says that something is wrong with itself.
    Broken(String),
    /// The server asks for patience.
    Busy {
        /// When to come back.
        pause: Option<Duration>,
        /// Whether it says in S3's words that it did nothing.
        is_certain: bool,
    },
    /// An object ended before the length that was announced for it.
    Cut(String),
    /// The answer is an error that another attempt does not change.
    Said(BucketError),
}

impl Failure {
    /// Whether another attempt may well do better.
    pub(super) fn is_worth_repeating(&self) -> bool {
        match self {
            Failure::NotSent(_)
            | Failure::Silent(_)
            | Failure::TooLate(_)
            | Failure::Broken(_)
            | Failure::Busy { .. }
            | Failure::Cut(_) => true,
            Failure::BreakerOpen(_) | Failure::Said(_) => false,
        }
    }

    /// Whether what was asked for may have been done, or may yet be.
    pub(super) fn may_be_done(&self) -> bool {
        match self {
            Failure::Silent(_) | Failure::TooLate(_) | Failure::Broken(_) => true,
            Failure::Busy { is_certain, .. } => !is_certain,
            Failure::BreakerOpen(_) | Failure::NotSent(_) | Failure::Cut(_) | Failure::Said(_) => {
                false
            }
        }
    }

    /// Why the server is not worth asking, if this says so.
    pub(super) fn outage(&self) -> Option<&str> {
        match self {
            Failure::NotSent(reason)
            | Failure::Silent(reason)
            | Failure::TooLate(reason)
            | Failure::Broken(reason)
            | Failure::Cut(reason) => Some(reason),
            Failure::BreakerOpen(_) | Failure::Busy { .. } | Failure::Said(_) => None,
        }
    }

    /// How long the server asks to be left alone.
    pub(super) fn pause(&self) -> Option<Duration> {
        match self {
            Failure::Busy { pause, .. } => *pause,
            _ => None,
        }
    }

    /// What the caller hears, after the last attempt. `may_be_done` is of all of them.
    pub(super) fn error(self, asked: Asked<'_>, may_be_done: bool) -> BucketError {
        let writes = matches!(asked.operation, Operation::Put | Operation::Delete);
        let bucket = asked.bucket.to_owned();
        let reason = match self {
            Failure::Said(error) => return error,
            Failure::Cut(reason) => return lied(asked, &reason),
            Failure::Busy { .. } if !(writes && may_be_done) => {
                return BucketError::Busy { bucket };
            }
            Failure::Busy { .. } => "the server is busy".to_owned(),
            Failure::BreakerOpen(reason)
            | Failure::NotSent(reason)
            | Failure::Silent(reason)
            | Failure::TooLate(reason)
            | Failure::Broken(reason) => reason,
        };
        if writes && may_be_done {
            return BucketError::Unclear {
                operation: asked.operation,
                key: asked.key.to_owned(),
                reason,
            };
        }
        BucketError::Unreachable { bucket, reason }
    }
}

/// Reads an error of the SDK. `ahead` is by how many seconds the server's clock is ahead.
pub(super) fn read<E>(
    asked: Asked<'_>,
    ahead: Option<i64>,
    error: SdkError<E, HttpResponse>,
) -> Failure
where
    E: Error + ProvideErrorMetadata + 'static,
{
    match &error {
        SdkError::ConstructionFailure(_) => Failure::Said(other(asked, innermost(&error))),
        SdkError::TimeoutError(_) => Failure::TooLate("it took too long".to_owned()),
        SdkError::DispatchFailure(failure) if failure.is_timeout() => {
            // Of the SDK's time-outs only the one of connecting is on.
            Failure::NotSent("it took too long to connect".to_owned())
        }
        SdkError::DispatchFailure(_) if was_refused(&error) => Failure::NotSent(innermost(&error)),
        SdkError::DispatchFailure(_) => Failure::Silent(innermost(&error)),
        SdkError::ResponseError(response) if response.raw().status().is_success() => {
            Failure::Silent(innermost(&error))
        }
        _ => match error.raw_response() {
            Some(response) => said(asked, ahead, &Said::of(response, &error)),
            None => Failure::Silent(innermost(&error)),
        },
    }
}

/// An error as a server says it.
#[derive(Clone, Debug, Default)]
struct Said {
    status: u16,
    code: String,
    message: String,
    retry_after: Option<Duration>,
    content_range: Option<String>,
}

impl Said {
    fn of<E: ProvideErrorMetadata>(response: &HttpResponse, error: &E) -> Said {
        let header = |name| response.headers().get(name).map(str::to_owned);
        let seconds = header("retry-after").and_then(|text| text.trim().parse().ok());
        Said {
            status: response.status().as_u16(),
            code: plain(error.code().unwrap_or_default()),
            message: plain(error.message().unwrap_or_default()),
            retry_after: seconds.map(Duration::from_secs),
            content_range: header("content-range"),
        }
    }

    fn reason(&self) -> String {
        match (self.code.as_str(), self.message.as_str()) {
            ("", "") => format!("status {}", self.status),
            ("", text) | (text, "") => format!("status {}, {text}", self.status),
            (code, message) => format!("status {}, {code}: {message}", self.status),
        }
    }
}

/// What an answer means that is no success.
fn said(asked: Asked<'_>, ahead: Option<i64>, said: &Said) -> Failure {
    let (bucket, key) = (asked.bucket.to_owned(), asked.key.to_owned());
    let is_object = !matches!(asked.operation, Operation::Put | Operation::List);
    let is_one_of = |codes: &[&str]| codes.contains(&said.code.as_str());
    if said.status == 429 || is_one_of(&CODES_OF_BUSY) {
        let is_certain = true;
        return Failure::Busy {
            pause: said.retry_after,
            is_certain,
        };
    }
    if said.status == 503 && said.retry_after.is_some() {
        return Failure::Busy {
            pause: said.retry_after,
            is_certain: false,
        };
    }
    if said.status >= 500 || said.status == 408 || said.code == "RequestTimeout" {
        return Failure::Broken(said.reason());
    }
    let is_skewed = ahead.is_some_and(|ahead| ahead.unsigned_abs() > SKEW_SECONDS_MAX);
    let is_denied = matches!(said.status, 401 | 403) || is_one_of(&CODES_OF_DENIED);
    Failure::Said(match said.status {
        _ if said.code == "NoSuchBucket" => BucketError::NoBucket { bucket },
        _ if said.code == "RequestTimeTooSkewed" || (is_denied && is_skewed) => {
            let ahead = skew(ahead);
            BucketError::ClockSkew { bucket, ahead }
        }
        _ if is_denied => {
            let reason = said.reason();
            BucketError::Denied { bucket, reason }
        }
        404 if is_object => BucketError::NotFound { key },
        416 => truncated(asked, said.content_range.as_deref()),
        _ => other(asked, said.reason()),
    })
}

/// No byte of the range is in the object. `wanted` is filled in by who knows the range.
fn truncated(asked: Asked<'_>, content_range: Option<&str>) -> BucketError {
    let total = content_range.and_then(|text| text.trim().strip_prefix("bytes */")?.parse().ok());
    BucketError::Truncated {
        key: asked.key.to_owned(),
        len: total.unwrap_or(u64::MAX),
        wanted: 0,
    }
}

/// How this machine's clock differs from the server's, in words.
fn skew(ahead: Option<i64>) -> String {
    match ahead {
        Some(seconds @ 1..) => format!("{seconds} s behind the server's"),
        Some(seconds @ ..0) => format!("{} s ahead of the server's", seconds.unsigned_abs()),
        Some(0) | None => "too far from the server's".to_owned(),
    }
}

pub(super) fn lied(asked: Asked<'_>, reason: &str) -> BucketError {
    BucketError::Lied {
        operation: asked.operation,
        key: asked.key.to_owned(),
        reason: reason.to_owned(),
    }
}

fn other(asked: Asked<'_>, reason: String) -> BucketError {
    BucketError::Other {
        operation: asked.operation,
        key: asked.key.to_owned(),
        reason,
    }
}

/// Whether the connection could not be made, so that nothing was sent.
fn was_refused(error: &(dyn Error + 'static)) -> bool {
    causes(error).any(|cause| {
        let kind = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        matches!(
            kind,
            Some(
                io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::HostUnreachable
                    | io::ErrorKind::NetworkUnreachable
            )
        )
    })
}

/// The cause of all causes, in words.
pub(super) fn innermost(error: &(dyn Error + 'static)) -> String {
    let text = causes(error).last().map(ToString::to_string);
    plain(&text.unwrap_or_default())
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    successors(Some(error), |error| (*error).source())
}

/// A stranger's text, made fit for a line of a log.
fn plain(text: &str) -> String {
    let text = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    text.take(TEXT_LEN_MAX)
        .collect::<String>()
        .trim()
        .to_owned()
}

/// Codes by which servers ask for patience, whatever the status.
const CODES_OF_BUSY: [&str; 7] = [
    "SlowDown",
    "SlowDownRead",
    "SlowDownWrite",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "TooManyRequests",
];

/// Codes by which servers refuse credentials with another status than 401 and 403.
const CODES_OF_DENIED: [&str; 6] = [
    "AccessDenied",
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
];

/// Beyond it, a refusal is put down to the clocks: servers allow 15 minutes.
const SKEW_SECONDS_MAX: u64 = 14 * 60;

/// In characters.
const TEXT_LEN_MAX: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(operation: Operation) -> Asked<'static> {
        Asked {
            operation,
            key: "pack/1",
            bucket: "attic at http://s3",
        }
    }

    /// What the caller hears when the server says this, be it the only attempt.
    fn heard(operation: Operation, status: u16, code: &str, retry_after: Option<u64>) -> String {
        let words = Said {
            status,
            code: code.to_owned(),
            message: "as I say".to_owned(),
            retry_after: retry_after.map(Duration::from_secs),
            content_range: None,
        };
        let failure = said(asked(operation), Some(3), &words);
        let repeats = if failure.is_worth_repeating() {
            "again, "
        } else {
            ""
        };
        let may_be_done = failure.may_be_done();
        let error = format!("{:?}", failure.error(asked(operation), may_be_done));
        let name = error
            .split([' ', '('])
            .next()
            .unwrap_or_default()
            .to_owned();
        format!("{repeats}{name}")
    }

    #[test]
    fn every_answer_has_one_meaning() {
        use Operation::{Delete, Get, Head, List, Put};
        let rows = [
            (Get, 404, "NoSuchKey", None, "NotFound"),
            (Head, 404, "NotFound", None, "NotFound"),
            (Delete, 404, "", None, "NotFound"),
            (Get, 404, "NoSuchBucket", None, "NoBucket"),
            (List, 404, "NoSuchBucket", None, "NoBucket"),
            (Put, 404, "", None, "Other"),
            (Get, 403, "SignatureDoesNotMatch", None, "Denied"),
            (Head, 403, "", None, "Denied"),
            (List, 401, "Unauthorized", None, "Denied"),
            (List, 400, "AuthorizationHeaderMalformed", None, "Denied"),
            (Put, 403, "RequestTimeTooSkewed", None, "ClockSkew"),
            (Put, 503, "SlowDown", None, "again, Busy"),
            (Get, 503, "SlowDown", Some(1), "again, Busy"),
            (Put, 429, "", None, "again, Busy"),
            (Put, 503, "", Some(1), "again, Unclear"),
            (Get, 503, "", Some(1), "again, Busy"),
            (Put, 503, "ServiceUnavailable", None, "again, Unclear"),
            (Delete, 500, "InternalError", None, "again, Unclear"),
            (Get, 500, "InternalError", None, "again, Unreachable"),
            (Head, 502, "", None, "again, Unreachable"),
            (Put, 400, "RequestTimeout", None, "again, Unclear"),
            (Get, 416, "InvalidRange", None, "Truncated"),
            (Put, 301, "PermanentRedirect", None, "Other"),
            (Put, 507, "", None, "again, Unclear"),
        ];
        for (operation, status, code, retry_after, expected) in rows {
            let heard = heard(operation, status, code, retry_after);
            assert_eq!(heard, expected, "{operation} {status} {code}");
        }
    }

    #[test]
    fn a_refusal_of_clocks_far_apart_is_put_down_to_them() {
        let words = Said {
            status: 403,
            code: "AccessDenied".to_owned(),
            ..Said::default()
        };
        let heard = |ahead| said(asked(Operation::Put), ahead, &words);
        let text = |ahead| heard(ahead).error(asked(Operation::Put), false).to_string();
        assert!(text(Some(3600)).contains("which is 3600 s behind the server's"));
        assert!(text(Some(-3600)).contains("which is 3600 s ahead of the server's"));
        assert!(text(Some(60)).contains("refuses access: status 403, AccessDenied"));
        assert!(text(None).contains("refuses access"));
    }

    #[test]
    fn what_strangers_say_fits_a_line() {
        let said = plain(&format!("  a\r\nb\u{1b}[31m{}", "x".repeat(1000)));
        assert!(
            said.starts_with("a  b [31m") && said.chars().count() <= TEXT_LEN_MAX,
            "{said}"
        );
    }
}
