//! `pin add | list | rm`

use attic_node_core::api::{PinPut, PinView};

use crate::args::PinVerb;
use crate::context::Context;
use crate::exit::CliError;
use crate::ui::date;

/// Runs a verb on the pins of a cache.
pub(super) async fn run(context: &Context, verb: PinVerb) -> Result<(), CliError> {
    let client = context.client()?;
    match verb {
        PinVerb::Add {
            cache,
            name,
            path,
            keep,
            json,
        } => {
            let Some(path) = path.path else {
                let message = format!("{} is only a hash part; name the path in full", path.text);
                return Err(CliError::Usage(message));
            };
            let pin = client
                .put_pin(&cache, name.as_str(), &PinPut { path, keep })
                .await?;
            if json.json {
                return context.ui.json(&pin);
            }
            context
                .ui
                .say(format_args!("✅ Pinned {} as \"{}\"", pin.path, pin.name));
            Ok(())
        }
        PinVerb::List { cache, json } => {
            let pins = client.pins(&cache).await?;
            if json.json {
                return context.ui.json(&pins);
            }
            let row = |pin: &PinView| {
                [
                    pin.name.clone(),
                    pin.keep.to_string(),
                    date(pin.created_at),
                    pin.path.to_string(),
                ]
            };
            let mut rows = vec![["PIN", "KEEP", "CREATED", "PATH"].map(str::to_owned)];
            rows.extend(pins.iter().map(row));
            context.ui.table([false, true, false, false], &rows)
        }
        PinVerb::Rm { cache, name, json } => {
            let mut pins = client.pins(&cache).await?;
            pins.retain(|pin| pin.name == name.as_str());
            client.delete_pin(&cache, name.as_str()).await?;
            if json.json {
                return context.ui.json(&pins);
            }
            context
                .ui
                .say(format_args!("✅ Removed pin \"{}\"", name.as_str()));
            Ok(())
        }
    }
}
