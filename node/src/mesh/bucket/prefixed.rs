//! The part of a bucket whose keys begin with a prefix, as a bucket.

use std::ops::Range;
use std::sync::Arc;

use attic_store::bucket::{Answer, Bucket, Counters, Health, Page};
use bytes::Bytes;

/// What of a bucket lies below a prefix.
pub(crate) struct Prefixed {
    whole: Arc<dyn Bucket>,
    prefix: String,
}

impl Prefixed {
    pub(crate) fn new(whole: Arc<dyn Bucket>, prefix: String) -> Prefixed {
        Prefixed { whole, prefix }
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }
}

impl Bucket for Prefixed {
    fn put<'a>(&'a self, key: &'a str, body: Bytes) -> Answer<'a, ()> {
        let key = self.key(key);
        Box::pin(async move { self.whole.put(&key, body).await })
    }

    fn get_range<'a>(&'a self, key: &'a str, range: Range<u64>) -> Answer<'a, Bytes> {
        let key = self.key(key);
        Box::pin(async move { self.whole.get_range(&key, range).await })
    }

    fn get<'a>(&'a self, key: &'a str, len_max: u64) -> Answer<'a, Bytes> {
        let key = self.key(key);
        Box::pin(async move { self.whole.get(&key, len_max).await })
    }

    fn head<'a>(&'a self, key: &'a str) -> Answer<'a, Option<u64>> {
        let key = self.key(key);
        Box::pin(async move { self.whole.head(&key).await })
    }

    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a str>) -> Answer<'a, Page> {
        let (prefix, after) = (self.key(prefix), after.map(|after| self.key(after)));
        Box::pin(async move {
            let mut page = self.whole.list(&prefix, after.as_deref()).await?;
            for object in &mut page.objects {
                if let Some(key) = object.key.strip_prefix(&self.prefix) {
                    object.key = key.to_owned();
                }
            }
            Ok(page)
        })
    }

    fn delete<'a>(&'a self, key: &'a str) -> Answer<'a, ()> {
        let key = self.key(key);
        Box::pin(async move { self.whole.delete(&key).await })
    }

    fn counters(&self) -> Counters {
        self.whole.counters()
    }

    fn health(&self) -> Health {
        self.whole.health()
    }
}
