"""Fewer, larger matrix products in a compiled step: a third of the time of a rollout's many small ones is their start.

The compiler passes in the graph of a step's forward or backward pass, which is rewritten by three identities. None of
them knows the model:

    A_1' B_1 + A_2' B_2 + ... = [A_1; A_2; ...]' [B_1; B_2; ...]    the gradient of weights used at every glimpse
    A_1 W, A_2 W, ...         = the rows of [A_1; A_2; ...] W       if none waits for another
    A V, A W                  = the columns of A [V W]              two layers that read one state

    torch.compile(function, options={"post_grad_custom_pre_pass": FuseMatmuls()})
"""

from collections import defaultdict
from collections.abc import Callable, Iterator

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch._inductor.pattern_matcher import stable_topological_sort
from torch.fx import Graph, Node

aten = torch.ops.aten
PRODUCT, BIASED_PRODUCT = aten.mm.default, aten.addmm.default
ADD, STACK, SLICE, TRANSPOSE = aten.add.Tensor, aten.cat.default, aten.slice.Tensor, aten.permute.default
CAST = torch.ops.prims.convert_element_type.default
LEFT, RIGHT = 0, 1  # factors of a product


class FusionError(Exception):
    """A bug in this file."""


class FuseMatmuls(CustomGraphPass):
    """Rewrites a graph of ATen operators in place; what it computes differs by rounding alone."""

    def __call__(self, graph: Graph):
        try:
            rewriting = Rewriting(graph)
            rewriting.join_sums()
            while rewriting.join_sharing(RIGHT) or rewriting.join_sharing(LEFT):
                pass
            rewriting.stack_before_transposing()
            graph.lint()
        except Exception as error:
            raise FusionError from error  # not the compiler's fault

    def uuid(self) -> bytes:
        """Identifies this rewriting in the compiler's cache."""
        return get_hash_for_files((__file__,))


class Rewriting:
    """The steps of rewriting one graph."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.stacks: dict[tuple, Node] = {}  # a stack that two products need is made once

    def join_sums(self):
        """Turns each sum of products whose left factors are transposed into one product."""
        for total in self.nodes(ADD):
            products = [] if is_term(total) else [transposed_product(term) for term in terms(total)]
            if len(products) > 1 and all(products) and len({shape(product) for product in products}) == 1:
                with self.graph.inserting_before(total):
                    left = self.stack([product.args[LEFT].args[0] for product in products], 0)
                    right = self.stack([product.args[RIGHT] for product in products], 0)
                    joined = self.call(PRODUCT, self.call(TRANSPOSE, left, [1, 0]), right)
                    total.replace_all_uses_with(self.call(CAST, joined, total.meta["val"].dtype))
        self.graph.eliminate_dead_code()

    def join_sharing(self, side: int) -> bool:
        """Joins the first products found that have one left or right factor and do not wait for each other.

        Returns:
            Whether there were any.
        """
        sharing = defaultdict(list)
        for product in self.nodes(PRODUCT, BIASED_PRODUCT):
            sharing[factors(product)[side]].append(product)
        bits, awaited = self.awaited()
        for shared, products in sharing.items():
            members = sum(bits[product] for product in products)
            if len(products) == 1 or any(awaited[product] & members for product in products):
                continue
            dim = 0 if side == RIGHT else 1  # along which others are stacked and the result is cut
            with self.graph.inserting_before(products[-1].next):
                others = self.stack([factors(product)[1 - side] for product in products], dim)
                joined = self.call(PRODUCT, *((others, shared) if side == RIGHT else (shared, others)))
                begin = 0
                for product in products:
                    end = begin + shape(product)[dim]
                    part = self.call(SLICE, joined, dim, begin, end)
                    if product.target is BIASED_PRODUCT:
                        part = self.call(ADD, part, product.args[0])
                    product.replace_all_uses_with(part)
                    self.graph.erase_node(product)
                    begin = end
            stable_topological_sort(self.graph)  # what used the first product comes too early now
            return True
        return False

    def stack_before_transposing(self):
        """[A' B'] = [A; B]', where A and B are in memory: torch 2.14 compiles transposed copies of two such bfloat16
        matrices side by side wrongly, on CPUs with AVX-512."""
        for stack in self.stacks.values():
            parts, dim = stack.args
            if all(map(is_transposed, parts)) and sum(map(is_in_memory, parts)) > 1:
                with self.graph.inserting_before(stack):
                    joined = self.call(STACK, [part.args[0] for part in parts], 1 - dim)
                    stack.replace_all_uses_with(self.call(TRANSPOSE, joined, [1, 0]))
        self.graph.eliminate_dead_code()

    def nodes(self, *targets: Callable) -> list[Node]:
        return [node for node in self.graph.nodes if is_plain(node, *targets)]

    def awaited(self) -> tuple[dict[Node, int], dict[Node, int]]:
        """A bit for each node, and for each node the bits of the nodes that it waits for."""
        bits, awaited = {}, {}
        for i, node in enumerate(self.graph.nodes):
            bits[node], awaited[node] = 1 << i, 0
            for source in node.all_input_nodes:
                awaited[node] |= awaited[source] | bits[source]
        return bits, awaited

    def stack(self, nodes: list[Node], dim: int) -> Node:
        key = (*nodes, dim)
        if key not in self.stacks:
            self.stacks[key] = self.call(STACK, nodes, dim)
        return self.stacks[key]

    def call(self, target: Callable, *args) -> Node:
        """A new node, with an example of its value like the others."""
        node = self.graph.call_function(target, args)
        node.meta["val"] = target(*torch.fx.map_arg(args, lambda source: source.meta["val"]))
        return node


def factors(product: Node) -> tuple[Node, Node]:
    """Left and right of mm(left, right) or addmm(bias, left, right)."""
    return product.args[-2], product.args[-1]


def shape(node: Node) -> torch.Size:
    return node.meta["val"].shape


def is_plain(node, *targets: Callable) -> bool:
    """Whether a node is one of these operators and scales nothing, as addmm can by its alpha and beta."""
    return isinstance(node, Node) and node.target in targets and not node.kwargs


def is_transposed(node: Node) -> bool:
    return node.target is TRANSPOSE and node.args[1] == [1, 0]


def is_in_memory(transposed: Node) -> bool:
    """Whether a matrix is given, or made for another use, too, and not while it is transposed."""
    source = transposed.args[0]
    uses = [user for node in (source, transposed) for user in node.users if user.op != "output"]
    return source.op == "placeholder" or len(uses) > 2


def terms(total: Node) -> Iterator[Node]:
    """The summands of a tree of additions."""
    for part in total.args:
        if is_plain(part, ADD) and is_term(part):
            yield from terms(part)
        else:
            yield part


def is_term(node: Node) -> bool:
    """Whether a node is used for a sum alone."""
    return [user.target for user in node.users] == [ADD]


def transposed_product(term: Node) -> Node | None:
    """The product A'B that a term is, perhaps cast to another number format, if nothing else uses it."""
    if is_plain(term, CAST) and len(term.users) == 1:
        term = term.args[0]
    if is_plain(term, PRODUCT) and len(term.users) == 1:
        left = term.args[LEFT]
        if is_transposed(left):
            return term
    return None
