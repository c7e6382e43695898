//! `key show | import | rotate`

use std::fs;
use std::io;
use std::path::Path;

use attic_node_core::api::{KeyImport, KeyRotate};
use attic_store::signature::SecretKey;

use crate::args::{Expiry, KeyVerb};
use crate::context::Context;
use crate::exit::CliError;
use crate::ui::date;

/// Runs a verb on the keys of a cache.
pub(super) async fn run(context: &Context, verb: KeyVerb) -> Result<(), CliError> {
    let client = context.client()?;
    let (view, changed, json) = match &verb {
        KeyVerb::Show { cache, json } => (client.cache(cache).await?, false, json),
        KeyVerb::Import {
            cache,
            file,
            keep_old,
            json,
        } => {
            let key = KeyImport {
                keep_old_seconds: keep_old.map(Expiry::seconds),
                ..read_secret_key(file)?
            };
            (client.import_key(cache, &key).await?, true, json)
        }
        KeyVerb::Rotate {
            cache,
            keep_old,
            confirm,
            json,
        } => {
            client.cache(cache).await?;
            let question =
                format_args!("Sign \"{cache}\" with a new key, which its users must trust?");
            context.ui.confirm(*confirm, question)?;
            let rotate = KeyRotate {
                keep_old_seconds: keep_old.map(Expiry::seconds),
            };
            (client.rotate_key(cache, &rotate).await?, true, json)
        }
    };
    if json.json {
        return context.ui.json(&view);
    }
    context.ui.data(&view.public_key)?;
    view.old_public_keys
        .iter()
        .try_for_each(|key| context.ui.data(key))?;
    for old in &view.retiring_keys {
        let name = old.key.split(':').next().unwrap_or_default();
        let until = date(old.until);
        context
            .ui
            .say(format_args!("{name} stays good until {until}"));
    }
    if changed {
        let cache = &view.name;
        context.ui.say(format_args!(
            "✅ Paths in \"{cache}\" are signed with a new key"
        ));
        context.ui.say(format_args!(
            "Let its users trust it: attic-node use {cache}"
        ));
    }
    Ok(())
}

/// Reads a secret key from a file, or from standard input for `-`. It is well-formed.
///
/// **Errors**: [`CliError::File`]; the key itself is in no message.
pub(super) fn read_secret_key(path: &Path) -> Result<KeyImport, CliError> {
    let error = |source| CliError::File {
        action: "read key",
        path: path.to_owned(),
        source,
    };
    let text = match path.to_str() {
        Some("-") => io::read_to_string(io::stdin()),
        _ => fs::read_to_string(path),
    };
    let text = text.map_err(error)?;
    let secret_key = text.trim().to_owned();
    let parsed = secret_key.parse::<SecretKey>();
    parsed.map_err(|reason| error(io::Error::new(io::ErrorKind::InvalidData, reason)))?;
    Ok(KeyImport {
        secret_key,
        keep_old_seconds: None,
    })
}
