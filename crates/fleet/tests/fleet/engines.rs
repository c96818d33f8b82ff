//! Two engines that know nothing but their names and one setting.

use mainstay_engine::{Engine, Error, Kind, Mistake, Result};
use mainstay_model::{Cluster, Place};

pub struct Named(&'static str, &'static [&'static str]);

pub static ENGINES: [&dyn Engine; 2] = [&Named("postgres", &["postgresql", "pg"]), &Named("redis", &[])];

impl Engine for Named {
    fn name(&self) -> &'static str {
        self.0
    }

    fn aliases(&self) -> &'static [&'static str] {
        self.1
    }

    fn check(&self, cluster: &Cluster) -> Vec<Mistake> {
        let mut mistakes = Vec::new();
        let mut refuse = |key: &str, message: &str| {
            mistakes.push(Mistake {
                key: key.to_owned(),
                message: message.to_owned(),
                hint: Some("ask the engine".to_owned()),
            });
        };
        for setting in cluster.config.keys().filter(|setting| setting.contains("bogus")) {
            refuse(&format!("config.{setting}"), "there is no such setting");
        }
        if cluster.version.as_ref().is_some_and(|version| version.major() > 99) {
            refuse("version", "there is no such version");
        }
        if cluster.nodes.count() == 13 {
            refuse("nodes", "thirteen nodes are too many");
        }
        mistakes
    }

    fn write_place(&self, place: &Place) -> String {
        place.offset.to_string()
    }

    fn read_place(&self, text: &str) -> Result<Place> {
        Err(Error::new(Kind::Invalid, text))
    }
}
