//! The verbs, one file each. A verb parses nothing and decides little: it asks the node, the store or
//! a pure module, and says what came of it.

use crate::args::Verb;
use crate::context::Context;
use crate::exit::CliError;

mod cache;
mod cluster;
mod completions;
mod config;
mod du;
mod gc;
mod invite;
mod join;
mod key;
mod leave;
mod ls;
mod peers;
mod pin;
mod push;
mod revoke;
mod rm;
mod s3;
mod signals;
mod status;
mod unuse;
mod up;
mod use_cache;
mod verify;

/// Runs a verb.
///
/// **Errors**: what kept it from doing all it was asked; already said, where the verb says more.
pub(crate) async fn run(context: Context, verb: Verb) -> Result<(), CliError> {
    match verb {
        Verb::Up(args) => up::run(context, args).await,
        Verb::Push(args) => push::run(&context, args).await,
        Verb::Use(args) => use_cache::run(&context, &args).await,
        Verb::Unuse(args) => unuse::run(&context, &args),
        Verb::Cache(verb) => cache::run(&context, verb).await,
        Verb::Ls(args) => ls::run(&context, &args).await,
        Verb::Du(args) => du::run(&context, &args).await,
        Verb::Rm(args) => rm::run(&context, &args).await,
        Verb::Pin(verb) => pin::run(&context, verb).await,
        Verb::Gc(args) => gc::run(&context, &args).await,
        Verb::Verify(args) => verify::run(&context, &args).await,
        Verb::Status(args) => status::run(&context, args).await,
        Verb::Cluster(verb) => cluster::run(&context, verb).await,
        Verb::S3(verb) => s3::run(&context, verb).await,
        Verb::Invite(args) => invite::run(&context, args).await,
        Verb::Join(args) => join::run(&context, &args).await,
        Verb::Leave(args) => leave::run(&context, &args).await,
        Verb::Peers(args) => peers::run(&context, args).await,
        Verb::Revoke(args) => revoke::run(&context, &args).await,
        Verb::Key(verb) => key::run(&context, verb).await,
        Verb::Config(verb) => config::run(&context, &verb),
        Verb::Completions { shell } => completions::run(&context, shell),
    }
}
