//! Making a node a reader of a private cache.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::identity::Identity;
use crate::ids::ClusterId;
use crate::membership::certificate::Certificate;
use crate::membership::sealing::{OpeningKey, ScopeKey, SealError, SecretContext};
use crate::private::EpochKey;
use crate::record::{CacheGenesis, Grant, Right};
use crate::signed::Signed;

/// What a grant to read has under its seal.
///
/// The genesis record proves whose cache it is to a node that has never heard of it.
#[derive(Serialize, Deserialize)]
struct Secret {
    genesis: CacheGenesis,
    key: [u8; 32],
}

/// Gives the owner of `reader` the key of a private cache. `random` must be fresh for every call.
///
/// **Errors**: [`SealError::Key`] when nothing can be sealed to the reader.
pub fn grant_read(
    owner: &Identity,
    genesis: &CacheGenesis,
    key: &EpochKey,
    reader: &Certificate,
    random: [u8; 32],
) -> Result<Signed<Grant>, SealError> {
    let cache = genesis.cache_id();
    let context = SecretContext {
        cluster: reader.cluster,
        cache,
        recipient: reader.node,
    };
    let secret = Secret {
        genesis: genesis.clone(),
        key: *key.key().as_bytes(),
    };
    let secret = Zeroizing::new(postcard::to_stdvec(&secret).expect("plain data"));
    let grant = Grant {
        cache,
        node: reader.node,
        right: Right::Read,
        epoch: key.epoch(),
        sealed: reader.sealing_key.seal(&context, &secret, random)?,
    };
    Ok(Signed::new(grant, owner))
}

/// What a grant gives the node that has `opening_key`: the cache and its key. `None` unless the
/// cache's owner made it for that node.
pub fn open_read_grant(
    grant: &Signed<Grant>,
    opening_key: &OpeningKey,
    cluster: ClusterId,
) -> Option<(CacheGenesis, EpochKey)> {
    let Grant {
        cache, node, epoch, ..
    } = *grant.value();
    let context = SecretContext {
        cluster,
        cache,
        recipient: node,
    };
    let plain = opening_key.open(&context, &grant.value().sealed).ok()?;
    let (secret, _) = postcard::take_from_bytes::<Secret>(&plain).ok()?;
    let is_owners = secret.genesis.cache_id() == cache
        && grant.value().right == Right::Read
        && grant.verify(&secret.genesis.owner).is_ok();
    let key = EpochKey::new(epoch, ScopeKey::from_bytes(secret.key))?;
    is_owners.then_some((secret.genesis, key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::Role;
    use crate::membership::certificate::{Holder, Issuer};
    use crate::membership::scopes::Scopes;
    use crate::membership::time::UnixTime;

    const CLUSTER: ClusterId = ClusterId::from_bytes([1; 16]);

    fn certificate(identity: &Identity) -> Certificate {
        let holder = Holder {
            node: identity.node_id(),
            sealing_key: OpeningKey::of(identity).sealing_key(),
            role: Role::Member,
            scopes: Scopes::read_all(),
        };
        Certificate::new(CLUSTER, holder, Issuer::Cluster, UnixTime(1), [0; 16])
    }

    fn genesis(owner: &Identity) -> CacheGenesis {
        CacheGenesis {
            name: "vault".parse().unwrap(),
            owner: owner.node_id(),
            nonce: [3; 16],
        }
    }

    #[test]
    fn the_reader_alone_learns_cache_and_key() {
        let [owner, reader, other] = [1, 2, 3].map(|seed| Identity::from_seed([seed; 32]));
        let key = EpochKey::derive(&[4; 32], 5).unwrap();
        let genesis = genesis(&owner);
        let grant = grant_read(&owner, &genesis, &key, &certificate(&reader), [6; 32]).unwrap();
        let (found, opened) = open_read_grant(&grant, &OpeningKey::of(&reader), CLUSTER).unwrap();
        assert_eq!((&found, opened.to_bytes()), (&genesis, key.to_bytes()));
        assert!(open_read_grant(&grant, &OpeningKey::of(&other), CLUSTER).is_none());
        let elsewhere = ClusterId::from_bytes([9; 16]);
        assert!(open_read_grant(&grant, &OpeningKey::of(&reader), elsewhere).is_none());
        assert!(!grant.encode().windows(5).any(|window| window == b"vault"));
        let again = Signed::<Grant>::decode(&grant.encode()).unwrap();
        assert!(open_read_grant(&again, &OpeningKey::of(&reader), CLUSTER).is_some());
    }

    #[test]
    fn nobody_but_the_owner_makes_readers() {
        let [owner, thief, reader] = [1, 2, 3].map(|seed| Identity::from_seed([seed; 32]));
        let key = EpochKey::derive(&[4; 32], 5).unwrap();
        let reader_key = OpeningKey::of(&reader);
        let reader = certificate(&reader);
        // Another's cache, granted by somebody else.
        let stolen = grant_read(&thief, &genesis(&owner), &key, &reader, [6; 32]).unwrap();
        assert!(open_read_grant(&stolen, &reader_key, CLUSTER).is_none());
        // The thief's own cache under the id of another.
        let own = grant_read(&thief, &genesis(&thief), &key, &reader, [6; 32]).unwrap();
        let grant = Grant {
            cache: genesis(&owner).cache_id(),
            ..own.value().clone()
        };
        let passed_off = Signed::new(grant, &thief);
        assert!(open_read_grant(&passed_off, &reader_key, CLUSTER).is_none());
        // A right of another kind.
        let good = grant_read(&owner, &genesis(&owner), &key, &reader, [6; 32]).unwrap();
        let right = Right::Sign;
        let grant = Grant {
            right,
            ..good.value().clone()
        };
        let other_right = Signed::new(grant, &owner);
        assert!(open_read_grant(&other_right, &reader_key, CLUSTER).is_none());
    }
}
