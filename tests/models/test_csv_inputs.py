"""Tables and series as CSV: columns in any order, other separators, wrong cells named."""

import pytest
import torch

import whence

pd = pytest.importorskip("pandas")


def frame():
    return pd.DataFrame(
        {"age": [20, 50], "income": [1.5, 2.5], "city": pd.Categorical(["Rome", "Oslo"]), "member": [True, False]}
    )


def test_rows_have_the_columns_and_dtypes_of_the_training_rows():
    reader = whence.TableReader(frame())
    rows = reader.read("city;member;income;age\nOslo;true;0.5;30\nRome;0;;40")
    assert list(rows.columns) == ["age", "income", "city", "member"]
    assert list(map(str, rows.dtypes)) == list(map(str, frame().dtypes))
    assert rows.age.tolist() == [30, 40]
    assert rows.income.isna().tolist() == [False, True]
    assert rows.city.tolist() == ["Oslo", "Rome"]
    assert rows.member.tolist() == [True, False]
    written = whence.TableReader(frame()).write(frame())
    pd.testing.assert_frame_equal(reader.read(written), frame())


def test_tensors_as_tables():
    reader = whence.TableReader(torch.zeros(3, 2), ["a", "b"])
    assert reader.read("b,a\n1,2\n3,4").tolist() == [[2, 1], [4, 3]]
    assert reader.read(reader.write(torch.tensor([[0.125, -3.0]]))).tolist() == [[0.125, -3.0]]
    with pytest.raises(whence.errors.InputError, match="1 names for 2 columns"):
        whence.TableReader(torch.zeros(3, 2), ["a"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the table is empty"),
        ("a,b", "a header and no row"),
        ("a\n1", "no column 'b', but a; the model takes a, b"),
        ("a,b,c\n1,2,3", "the model has no column 'c'"),
        ("a,b\n1", "row 1 has 1 values; the header has 2 columns"),
        ("a,b\n1,2\n3,x", "row 2, column 'b': 'x' is not a number"),
        ("a,a\n1,2", "two columns of the table have the same name"),
    ],
)
def test_what_is_said_of_wrong_tables(text, message):
    with pytest.raises(whence.errors.InputError, match=message):
        whence.TableReader(torch.zeros(3, 2), ["a", "b"]).read(text)


def test_series_with_and_without_a_header():
    reader = whence.SeriesReader(["x", "y"], length=3, sampling_rate=10)
    expected = torch.tensor([[[1.0, 3, 5], [2, 4, 6]]])
    for text in ("x,y\n1,2\n3,4\n5,6", "1,2\n3,4\n5,6", "y\tx\n2\t1\n4\t3\n6\t5", "left,right\n1,2\n3,4\n5,6"):
        torch.testing.assert_close(reader.read(text), expected)
    assert whence.SeriesReader(["x", "y"], channels_first=False).read("1,2\n3,4").shape == (1, 2, 2)
    torch.testing.assert_close(reader.read(reader.write(expected)), expected)
    with pytest.raises(whence.errors.InputError, match="2 time steps; the model takes 3"):
        reader.read("1,2\n3,4")
    with pytest.raises(whence.errors.InputError, match="has 3 columns; expected 2: x, y"):
        reader.read("1,2,3\n3,4,5\n6,7,8")
