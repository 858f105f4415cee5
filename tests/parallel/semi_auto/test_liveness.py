"""What a graph keeps alive at once, of graphs written by hand with peaks worked out by hand."""

import re

import pytest

from src.parallel.semi_auto.dry_run.liveness import alive

HEAD = """# IR entry: @main_1
# Total subgraphs: {count}

# Total params: 2
# Params:
%para1_batch0: <Tensor[Float32], (10, 1)> : [10, 1]
%para2_weight: <Ref[Tensor[Float32]], (10, 10), ref_key=weight, is_parameter, is_inplace>  :  has_default
"""


def graph(name, parameters, *nodes, result):
    """Write a subgraph. A node is (name, right side, result's type, scope)."""
    lines = [f"subgraph @{name}({', '.join(parameters)}) {{"]
    for node, right, kind, scope in nodes:
        lines += [f"  {node}(CNode) = {right}", f"      : (<anything>) -> (<{kind}>)", f"      # scope: ({scope})"]
    return "\n".join([*lines, f"  Return({result})", f"      : (<{kind}>)", "}", ""])


def text_of(*graphs):
    return HEAD.format(count=len(graphs)) + "\n".join(graphs)


FORWARD, BACKWARD, UPDATE = (
    "Default/network/x-op0",
    "Gradients/Default/network/x-op0",
    "Default/apply_gradients-A/x-op0",
)
SQUARE = "Tensor[Float32], (10, 10)"  # 400 bytes
HALF = "Tensor[Float16], (10, 10)"  # 200 bytes
IN_PLACE = "Ref[Tensor[Float32]], (10, 10), ref_key=weight, is_parameter, is_inplace"


def test_tensors_die_after_their_last_reader():
    """The input of 40 bytes stays. %0 (400) and %1 (200) die when %3 (200) has read them. A view has its operand's
    memory, what is written in place has none, and coming after a tensor is not reading it."""
    text = text_of(
        graph(
            "main_1",
            [],
            ("%0", "PrimFunc_MatMul(%para2_weight, %para1_batch0, Bool(0))", SQUARE, FORWARD),
            ("%1", "PrimFunc_Cast(%0, I64(42))", HALF, FORWARD),
            ("%2", "PrimFunc_Reshape(%1, (I64(100)))", "Tensor[Float16], (100)", FORWARD),
            ("%3", "PrimFunc_Mul(%2, %0)", HALF, FORWARD),
            ("%4", "PrimFunc_Add(%3, %3) {instance name: add}", SQUARE, BACKWARD),
            ("%5", "Depend(%4, %0)", SQUARE, BACKWARD),
            ("%6", "PrimFunc_Assign(%para2_weight, %5)", IN_PLACE, UPDATE),
            result="%6",
        )
    )
    found = alive(text)
    assert found.bytes == 40 + 400 + 200 + 200  # at %3; at %4 there are 40 + 200 + 400
    assert found.kinds == (("forward MatMul", 400), ("forward Cast", 200), ("forward Mul", 200), ("input", 40))


def test_each_output_of_a_tuple_lives_for_itself():
    """%0 makes 400 + 20 bytes. Its first output dies at %3, before %4 is made; the second one lives until %5."""
    pair = "Tuple[Tensor[Float32],Tensor[Float16]], TupleShape((10, 10), (10))"
    text = text_of(
        graph(
            "main_1",
            [],
            ("%0", "PrimFunc_LayerNorm(%para2_weight)", pair, FORWARD),
            ("%1", "TupleGetItem(%0, I64(0))", SQUARE, FORWARD),
            ("%2", "TupleGetItem(%0, I64(1))", "Tensor[Float16], (10)", FORWARD),
            ("%3", "PrimFunc_Cast(%1, I64(42))", HALF, FORWARD),
            ("%4", "PrimFunc_Add(%3, %3)", SQUARE, FORWARD),
            ("%5", "PrimFunc_Sub(%4, %2)", SQUARE, FORWARD),
            result="%5",
        )
    )
    assert alive(text).bytes == 40 + 20 + 400 + 400  # at %5: both squares and the second output


def test_a_graph_that_is_called_for_each_micro_batch():
    """The forward graph returns 200 bytes and a function that keeps 400 bytes until the backward pass. Both forward
    passes come before the first backward pass, so that the second one has 40 + 2 x (200 + 400) bytes. The backward
    pass makes 400 more, when nothing reads the 200 bytes of the forward passes any longer: 40 + 2 x 400 + 400."""
    forward = graph(
        "forward_2",
        ["%para3_x"],
        ("%0", "PrimFunc_MatMul(%para3_x, %para2_weight)", SQUARE, FORWARD),
        ("%1", "PrimFunc_Cast(%0, I64(42))", HALF, FORWARD),
        ("%2", "Partial(@backward_3, %0)", "Func, NoShape", FORWARD),
        ("%3", "MakeTuple(%1, %2)", "Tuple[Tensor[Float16],Func], TupleShape((10, 10), NoShape)", FORWARD),
        result="%3",
    )
    backward = graph(
        "backward_3",
        ["%para4_kept", "%para5_gradient"],
        ("%0", "PrimFunc_Mul(%para4_kept, %para5_gradient)", SQUARE, BACKWARD),
        ("%1", "PrimFunc_AssignAdd(%para2_weight, %0)", IN_PLACE, BACKWARD),
        result="%1",
    )
    calls = []
    for at in (0, 10):
        calls += [
            (f"%{at}", "call @forward_2(%para1_batch0)", "Tuple[Tensor[Float16],Func], TupleShape()", FORWARD),
            (f"%{at + 1}", f"TupleGetItem(%{at}, I64(1))", "Func, NoShape", FORWARD),
        ]
    for at, after in ((0, "%10"), (10, "%2")):
        calls += [
            (
                f"%{at + 3}",
                f"Depend(Tensor(shape=[], dtype=Float32, value=1), {after})",
                "Tensor[Float32], ()",
                FORWARD,
            ),
            (f"%{at + 2}", f"%{at + 1}[@Partial(@backward_3)](%{at + 3}) cnode_attrs: {{a: 1}}", IN_PLACE, BACKWARD),
        ]
    calls.append(("%20", "MakeTuple(%2, %12)", "Tuple[Tensor[Float32]], TupleShape(())", FORWARD))
    found = alive(text_of(graph("main_1", [], *calls, result="%20"), forward, backward))
    assert found.bytes == 40 + 3 * 400
    assert found.kinds[:2] == (("forward MatMul", 800), ("backward Mul", 400))


def test_a_branch_counts_where_it_is_called():
    update = graph(
        "update_2",
        ["%para3_gradient"],
        ("%0", "PrimFunc_Mul(%para3_gradient, F32(0.5))", SQUARE, UPDATE),
        ("%1", "Adam(%para2_weight, %0)", SQUARE, UPDATE),
        result="%1",
    )
    skipped = graph("skipped_3", [], ("%0", "MakeTuple()", "Tuple[], TupleShape()", UPDATE), result="%0")
    text = text_of(
        graph(
            "main_1",
            [],
            ("%0", "PrimFunc_MatMul(%para1_batch0, %para2_weight)", SQUARE, BACKWARD),
            ("%1", "PrimFunc_IsFinite(%0)", "Tensor[Bool], ()", UPDATE),
            ("%2", "Partial(@update_2, %0)", "Func, NoShape", UPDATE),
            ("%3", "Partial(@skipped_3)", "Func, NoShape", UPDATE),
            ("%4", "Switch(%1, %2, %3)", "Func, NoShape", UPDATE),
            ("%5", "%4[@FuncUnion(Partial(@update_2), Partial(@skipped_3))]()", "Tensor[Bool], ()", UPDATE),
            result="%5",
        ),
        update,
        skipped,
    )
    assert alive(text).bytes == 40 + 400 + 400  # the gradient and its product; Adam writes in place


@pytest.mark.parametrize(
    "node, reason",
    [
        (("%0", "call @main_1()", SQUARE, FORWARD), "the graph @main_1 calls itself"),
        (("%0", "PrimFunc_Cast(%para1_batch0)", "Tensor[Int4], (8)", FORWARD), "the size of .*Int4.* is not known"),
        (("%0", "%para9_f[@Unknown](%para1_batch0)", SQUARE, FORWARD), "a called function is not known"),
    ],
)
def test_what_cannot_be_followed_has_a_reason_and_no_number(node, reason):
    found = alive(text_of(graph("main_1", [], node, result="%0")))
    assert found.bytes is None and re.search(reason, found.reason)
