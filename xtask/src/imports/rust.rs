//! The imports of a Rust crate.
//!
//! `mod child;` only says where a file is, and is no import: what a parent uses of its child, and a child of its parent,
//! is. A name that a module re-exports is looked for where it is defined, so that no re-export hides a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Expr, ExprLit, Item, ItemMod, Lit, Meta, UseTree};

use super::graph::Graph;

/// Re-exports of re-exports that are followed.
const RE_EXPORTS: usize = 16;

/// Adds the files of the crate whose first file is `root`.
///
/// # Errors
/// A file cannot be read, is no Rust, or a module has no file.
pub(super) fn read(root: &Path, graph: &mut Graph) -> Result<()> {
    let mut tree = Crate::default();
    let folder = root.parent().context("a file is in a folder")?;
    tree.load(root, folder, None)?;
    for module in &tree.modules {
        graph.file(&module.file);
    }
    for (at, module) in tree.modules.iter().enumerate() {
        for path in &module.paths {
            if let Some(file) = tree.find(at, path, 0) {
                graph.import(&module.file, file, &path.join("::"));
            }
        }
    }
    Ok(())
}

#[derive(Default)]
struct Crate {
    /// The first is the crate's own.
    modules: Vec<Module>,
}

#[derive(Default)]
struct Module {
    file: PathBuf,
    parent: Option<usize>,
    children: BTreeMap<String, usize>,
    /// Items that are defined here.
    items: BTreeSet<String>,
    /// Names that `use` brings here, with the path of each.
    names: BTreeMap<String, Vec<String>>,
    /// Paths of `use path::*`.
    globs: Vec<Vec<String>>,
    /// Every path of two names or more that could lead to another module of the crate.
    paths: Vec<Vec<String>>,
}

impl Crate {
    /// Reads a file and the files of its modules, which are in `folder`.
    fn load(&mut self, file: &Path, folder: &Path, parent: Option<usize>) -> Result<usize> {
        let text =
            fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let parsed =
            syn::parse_file(&text).with_context(|| format!("{} is no Rust", file.display()))?;
        self.add(&parsed.items, file, folder, parent)
    }

    fn add(
        &mut self,
        items: &[Item],
        file: &Path,
        folder: &Path,
        parent: Option<usize>,
    ) -> Result<usize> {
        let at = self.modules.len();
        self.modules.push(Module::default());
        let mut module = Module {
            file: file.to_owned(),
            parent,
            ..Module::default()
        };
        for item in items {
            if let Item::Mod(child) = item {
                let name = child.ident.to_string();
                let id = self.load_child(child, file, folder, at)?;
                module.children.insert(name, id);
            } else {
                Reader(&mut module).visit_item(item);
            }
            module.items.extend(name(item));
        }
        if let Some(place) = self.modules.get_mut(at) {
            *place = module;
        }
        Ok(at)
    }

    fn load_child(
        &mut self,
        child: &ItemMod,
        file: &Path,
        folder: &Path,
        parent: usize,
    ) -> Result<usize> {
        let name = child.ident.to_string();
        let own = folder.join(&name);
        if let Some((_, items)) = &child.content {
            return self.add(items, file, &own, Some(parent));
        }
        if let Some(path) = path_attribute(child) {
            let path = file.with_file_name(path);
            let folder = path.parent().context("a file is in a folder")?.to_owned();
            return self.load(&path, &folder, Some(parent));
        }
        let candidates = [folder.join(format!("{name}.rs")), own.join("mod.rs")];
        let found = candidates.iter().find(|path| path.exists());
        let path =
            found.with_context(|| format!("{}: no file of module {name}", file.display()))?;
        self.load(path, &own, Some(parent))
    }

    /// The file in which what `path` names is defined, read in module `at`. None if that is another crate.
    fn find(&self, at: usize, path: &[String], depth: usize) -> Option<&Path> {
        let (first, rest) = path.split_first()?;
        let module = self.modules.get(at)?;
        match first.as_str() {
            "crate" => self.walk(0, rest, depth),
            "self" => self.walk(at, rest, depth),
            "super" => self.walk(module.parent?, rest, depth),
            name => {
                if let Some(&child) = module.children.get(name) {
                    return self.walk(child, rest, depth);
                }
                let alias = module.names.get(name)?;
                // A crate of the same name is not followed into itself.
                if alias == path || depth > RE_EXPORTS {
                    return None;
                }
                let whole: Vec<String> = alias.iter().chain(rest).cloned().collect();
                self.find(at, &whole, depth + 1)
            }
        }
    }

    /// The same, for a path from module `at` on.
    fn walk(&self, at: usize, path: &[String], depth: usize) -> Option<&Path> {
        let module = self.modules.get(at)?;
        let Some((first, rest)) = path.split_first() else {
            return Some(&module.file);
        };
        if depth > RE_EXPORTS {
            return None;
        }
        if matches!(first.as_str(), "self" | "super") || module.children.contains_key(first) {
            return self.find(at, path, depth);
        }
        if module.items.contains(first) {
            return Some(&module.file);
        }
        if let Some(alias) = module.names.get(first) {
            let whole: Vec<String> = alias.iter().chain(rest).cloned().collect();
            // None: an item of another crate, which this module passes on.
            return self.find(at, &whole, depth + 1);
        }
        let mut globs = module.globs.iter().filter_map(|glob| {
            let whole: Vec<String> = glob.iter().chain(path).cloned().collect();
            self.find(at, &whole, depth + 1)
        });
        globs.next().or(Some(&module.file))
    }
}

fn path_attribute(module: &ItemMod) -> Option<String> {
    module
        .attrs
        .iter()
        .find_map(|attribute| match &attribute.meta {
            Meta::NameValue(pair) if pair.path.is_ident("path") => match &pair.value {
                Expr::Lit(ExprLit {
                    lit: Lit::Str(text),
                    ..
                }) => Some(text.value()),
                _ => None,
            },
            _ => None,
        })
}

/// The name that an item has in its module.
fn name(item: &Item) -> Option<String> {
    let name = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(name.to_string())
}

/// Collects the paths of one module.
struct Reader<'a>(&'a mut Module);

impl Reader<'_> {
    fn path(&mut self, path: Vec<String>) {
        if path.len() > 1 {
            self.0.paths.push(path);
        }
    }

    fn tree(&mut self, tree: &UseTree, before: &[String]) {
        let with = |name: &syn::Ident| {
            let mut path = before.to_vec();
            // `use a::{self}` is `use a`.
            if name != "self" || before.is_empty() {
                path.push(name.to_string());
            }
            path
        };
        match tree {
            UseTree::Path(tree) => self.tree(&tree.tree, &with(&tree.ident)),
            UseTree::Group(tree) => {
                for tree in &tree.items {
                    self.tree(tree, before);
                }
            }
            UseTree::Name(tree) => {
                let path = with(&tree.ident);
                if let Some(last) = path.last().cloned() {
                    self.0.names.insert(last, path.clone());
                }
                self.path(path);
            }
            UseTree::Rename(tree) => {
                let path = with(&tree.ident);
                self.0.names.insert(tree.rename.to_string(), path.clone());
                self.path(path);
            }
            UseTree::Glob(_) => {
                self.0.globs.push(before.to_vec());
                // Of a module itself one name is enough.
                self.0.paths.push(before.to_vec());
            }
        }
    }

    /// Paths in the tokens of a macro, which nothing else understands.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(name) if path.is_empty() || colons == 2 => {
                    path.push(name.to_string());
                    colons = 0;
                }
                TokenTree::Punct(mark) if mark.as_char() == ':' && !path.is_empty() => colons += 1,
                other => {
                    self.path(std::mem::take(&mut path));
                    colons = 0;
                    match other {
                        TokenTree::Group(group) => self.tokens(group.stream()),
                        TokenTree::Ident(name) => path.push(name.to_string()),
                        _ => {}
                    }
                }
            }
        }
        self.path(path);
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if item.leading_colon.is_none() {
            self.tree(&item.tree, &[]);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.leading_colon.is_none() {
            self.path(
                path.segments
                    .iter()
                    .map(|segment| segment.ident.to_string())
                    .collect(),
            );
        }
        visit::visit_path(self, path);
    }

    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {
        // `pub(in crate::a)` imports nothing.
    }

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        self.visit_path(&item.path);
        self.tokens(item.tokens.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The circles of a crate of these files, each as the names of its files.
    fn circles(files: &[(&str, &str)]) -> Result<Vec<String>> {
        let folder = tempfile::tempdir()?;
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().context("a folder")?)?;
            fs::write(path, text)?;
        }
        let mut graph = Graph::default();
        read(&folder.path().join("lib.rs"), &mut graph)?;
        let circles = graph.circles();
        let shown = circles.iter().map(|circle| {
            let steps = circle.iter().map(|step| {
                let path = step.from.strip_prefix(folder.path()).unwrap_or(&step.from);
                path.display().to_string()
            });
            steps.collect::<Vec<_>>().join(" ")
        });
        Ok(shown.collect())
    }

    #[test]
    fn a_child_that_uses_its_parent_is_no_circle_by_itself() -> Result<()> {
        let parent = "mod a; mod b; pub struct Top;";
        let found = circles(&[
            ("lib.rs", parent),
            ("a.rs", "use super::Top; pub struct A(Top);"),
            (
                "b.rs",
                "use crate::a::A; mod tests { use super::*; } fn f() -> A { crate::a::A(todo!()) }",
            ),
        ])?;
        assert!(found.is_empty(), "{found:?}");
        Ok(())
    }

    #[test]
    fn a_circle_is_seen_in_every_way_to_name_what_is_imported() -> Result<()> {
        for import in [
            "use crate::a::A;",
            "use super::a::A;",
            "use super::a;",
            "use super::a::{self};",
            "use super::a::*;",
            "use crate::{a::A as Other};",
            "pub use crate::a::A;",
            "fn f(_: crate::a::A) {}",
            "fn f() { let _ = super::a::A; }",
            "fn f() { println!(\"{}\", crate::a::A); }",
            // Re-exported by the parent.
            "use crate::A;",
            "use super::A;",
            "use super::*; fn f(_: super::A) {}",
        ] {
            let found = circles(&[
                ("lib.rs", "mod a; mod b; pub use a::A;"),
                ("a.rs", "use crate::b::f; pub struct A;"),
                ("b.rs", import),
            ])?;
            assert_eq!(found, ["a.rs b.rs"], "{import}");
        }
        Ok(())
    }

    #[test]
    fn a_parent_that_uses_a_child_that_uses_it_is_a_circle() -> Result<()> {
        for uses in [
            "use a::A;",
            "pub use a::A;",
            "fn f() { a::f(); }",
            "fn f() { vec![a::f()]; }",
        ] {
            let found = circles(&[
                ("lib.rs", "mod top;"),
                ("top/mod.rs", &format!("mod a; pub struct Top; {uses}")),
                ("top/a.rs", "use super::Top; pub struct A; pub fn f() {}"),
            ])?;
            assert_eq!(found, ["top/a.rs top/mod.rs"], "{uses}");
        }
        Ok(())
    }

    #[test]
    fn files_of_the_folder_of_a_module_are_found() -> Result<()> {
        let found = circles(&[
            ("lib.rs", "mod top; #[path = \"elsewhere/far.rs\"] mod far;"),
            ("top.rs", "mod low; mod inner { pub mod deep; } use low::L;"),
            ("top/low.rs", "use super::inner::deep::D; pub struct L;"),
            ("top/inner/deep.rs", "use crate::far::F; pub struct D;"),
            (
                "elsewhere/far.rs",
                "mod side; use crate::top::low::L; pub struct F;",
            ),
            ("elsewhere/side.rs", ""),
        ])?;
        assert_eq!(found, ["elsewhere/far.rs top/low.rs top/inner/deep.rs"]);
        assert!(circles(&[("lib.rs", "mod gone;")]).is_err());
        Ok(())
    }
}
