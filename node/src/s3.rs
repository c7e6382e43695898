//! The bucket that the configuration names.

use std::sync::Arc;

use attic_store::bucket::Bucket;
use attic_store::bucket::s3::{
    Credentials, CredentialsError, Policy, S3Bucket, S3Options, S3OptionsError,
};
use thiserror::Error;

use crate::config::S3Config;
use crate::data_dir::{FileError, read_secret};

/// Why a bucket cannot be asked, whatever its server does.
#[derive(Debug, Error)]
pub enum S3Error {
    /// What is configured is wrong.
    #[error("[s3] in the configuration")]
    Options(#[from] S3OptionsError),
    /// There is no key, or half of one.
    #[error("access key of the bucket")]
    Credentials(#[from] CredentialsError),
    /// A file of the key cannot be read.
    #[error("access key of the bucket")]
    File(#[from] FileError),
}

/// Whether the options are right in themselves. Looks at no file.
///
/// **Errors**: what is wanted instead.
pub(crate) fn check(config: &S3Config) -> Result<(), String> {
    let options = options(config, Credentials::new("", ""));
    options.check().map_err(|error| error.to_string())
}

/// Opens the bucket, which is asked nothing yet. Blocks on the disk.
///
/// **Errors**: any [`S3Error`].
pub(crate) fn open(config: &S3Config) -> Result<(Arc<dyn Bucket>, String), S3Error> {
    let bucket = S3Bucket::new(options(config, credentials(config)?))?;
    let name = format!("s3://{}/{}", config.bucket, config.prefix);
    Ok((Arc::new(bucket), name))
}

/// Opens the bucket as its check wants it: with short pages.
///
/// **Errors**: any [`S3Error`].
pub(crate) fn open_for_check(config: &S3Config) -> Result<Arc<dyn Bucket>, S3Error> {
    let bucket = S3Bucket::new(S3Options {
        page_len: Some(CHECK_PAGE_LEN),
        ..options(config, credentials(config)?)
    })?;
    Ok(Arc::new(bucket))
}

fn credentials(config: &S3Config) -> Result<Credentials, S3Error> {
    Ok(match &config.key_files {
        Some((id, secret)) => Credentials::new(&read_secret(id)?, &read_secret(secret)?),
        None => Credentials::look_up(|name| config.environment.get(name))?,
    })
}

fn options(config: &S3Config, credentials: Credentials) -> S3Options {
    S3Options {
        endpoint: config.endpoint.clone(),
        region: Some(config.region.clone()),
        bucket: config.bucket.clone(),
        prefix: config.prefix.clone(),
        path_style: config.path_style,
        credentials,
        page_len: None,
        policy: Policy::default(),
    }
}

/// A check tries paging with pages of at most so many objects.
const CHECK_PAGE_LEN: u16 = 4;
