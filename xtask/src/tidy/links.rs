//! Links in the documentation lead somewhere: each relative one names a file or folder of the repository.

use std::collections::BTreeSet;

use super::sources::Source;

/// Every relative link of a Markdown file that leads nowhere. `files` are all paths of the repository.
pub fn check(sources: &[Source], files: &BTreeSet<String>) -> Vec<String> {
    let pages = sources.iter().filter(|source| source.path.ends_with(".md"));
    pages.flat_map(|page| dead_links(page, files)).collect()
}

fn dead_links(page: &Source, files: &BTreeSet<String>) -> Vec<String> {
    let mut findings = Vec::new();
    let mut in_code = false;
    for (number, line) in page.text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        for link in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap_or_default();
            let outward = link.contains("://") || link.starts_with("mailto:") || path.is_empty();
            let target = join(&page.path, path);
            let folder = format!("{target}/");
            let leads = files.contains(&target) || files.iter().any(|file| file.starts_with(&folder));
            if !in_code && !outward && !leads {
                findings.push(format!("{}:{}: the link to {link} leads nowhere", page.path, number + 1));
            }
        }
    }
    findings
}

/// Where a link on a page leads, relative to the repository's root.
fn join(page: &str, link: &str) -> String {
    let mut parts: Vec<&str> = page.split('/').collect();
    parts.pop();
    for part in link.split('/') {
        match part {
            "." | "" => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_links_are_found() {
        let files = BTreeSet::from(["docs/a.md".to_owned(), "src/lib.rs".to_owned()]);
        let text = "[a](a.md) [lib](../src/lib.rs#L1) [folder](../src/) [out](https://example.org/) [top](#top)\n\
                    [dead](b.md)\n```\n[code](nothing.md)\n```\n";
        let page = Source { path: "docs/a.md".to_owned(), text: text.to_owned() };
        assert_eq!(check(&[page], &files), ["docs/a.md:2: the link to b.md leads nowhere"]);
    }
}
