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
        ("a,b\n1,13,5", "row 1 has 3 values; the header has 2 columns"),
        ("a,b,c\n1,2,3", "the model has no column 'c'"),
        ("a,b\n1", "row 1 has 1 values; the header has 2 columns"),
        ("a,b\n1,2\n3,x", "row 2, column 'b': 'x' is not a number"),
        ("a,a\n1,2", "two columns of the table have the same name 'a'"),
        ('a,b\n"' + "1" * 140_000 + '",2', "the text is not a CSV"),
    ],
)
def test_what_is_said_of_wrong_tables(text, message):
    with pytest.raises(whence.errors.InputError, match=message):
        whence.TableReader(torch.zeros(3, 2), ["a", "b"]).read(text)


def test_series_with_and_without_a_header():
    reader = whence.SeriesReader(["x", "y"], length=3, sampling_rate=10)
    expected = torch.tensor([[[1.0, 3, 5], [2, 4, 6]]])
    for text in (
        "x,y\n1,2\n3,4\n5,6",
        "1,2\n3,4\n5,6",
        "y\tx\n2\t1\n4\t3\n6\t5",
        " X , Y \r\n1,2\r\n3,4\r\n5,6\r\n",
        "\ufeff1,2\n3,4\n5,6",
        '"1","2"\n"3","4"\n"5","6"',
    ):
        torch.testing.assert_close(reader.read(text), expected)
    assert whence.SeriesReader(["x", "y"], channels_first=False).read("1,2\n3,4").shape == (1, 2, 2)
    torch.testing.assert_close(reader.read(reader.write(expected)), expected)
    with pytest.raises(whence.errors.InputError, match="no column 'x', but left, right"):
        reader.read("left,right\n1,2\n3,4\n5,6")
    missing = whence.SeriesReader(["x", "y"]).read(",2\nNA,4\n5,6")  # no header: the first step is not lost
    assert missing.shape == (1, 2, 3)
    assert missing.isnan().sum() == 2
    assert whence.SeriesReader(["1", "2"]).read("1,2\n0.5,0.6").shape == (1, 2, 1)  # names that are numbers
    assert whence.SeriesReader(["x"]).read("x\n1\n\n3").shape == (1, 1, 3)  # an empty line is a missing value
    with pytest.raises(whence.errors.InputError, match="two channels have the same name 'x'"):
        whence.SeriesReader(["x", "x"])
    with pytest.raises(whence.errors.InputError, match="2 time steps; the model takes 3"):
        reader.read("1,2\n3,4")
    with pytest.raises(whence.errors.InputError, match="has 3 columns; expected 2: x, y"):
        reader.read("1,2,3\n3,4,5\n6,7,8")


FRAMES = {
    "categories that are numbers": pd.DataFrame({"c": pd.Categorical([1, 2, 1])}),
    "intervals": pd.DataFrame({"c": pd.cut([1, 5, 9], 3)}),
    "objects": pd.DataFrame({"o": [True, False, None]}),
    "integers as objects": pd.DataFrame({"o": pd.Series([1, 2, 3], dtype=object)}),
    "nullable": pd.DataFrame({"b": pd.array([True, None], dtype="boolean"), "i": pd.array([1, None], dtype="Int64")}),
    "many digits": pd.DataFrame({"id": [123456789], "t": [1606780800.5]}),
    "texts and dates": pd.DataFrame({"s": ["a", "b,c\nd"], "d": pd.to_datetime(["2020-01-02", "2021-03-04"])}),
    "missing texts": pd.DataFrame({"s": pd.array(["x", None], dtype="string"), "q": ["x", None]}),
    "separators in names": pd.DataFrame({"a;b;c": [1], "d,e": [2]}),
}


@pytest.mark.parametrize("name", FRAMES)
def test_what_is_written_is_read(name):
    reader = whence.TableReader(FRAMES[name])
    pd.testing.assert_frame_equal(reader.read(reader.write(FRAMES[name])), FRAMES[name])


@pytest.mark.parametrize(
    ("frame", "text", "message"),
    [
        (pd.DataFrame({"c": pd.Categorical(["lo", "hi"])}), "c\nmid", "column 'c': 'mid' is not one of the values hi, lo"),
        (pd.DataFrame({"n": [1, 2]}), "n\n1.5", "'1.5' is not an integer"),
        (pd.DataFrame({"n": [1, 2]}), "n\n", "no row"),
        (pd.DataFrame({"u": pd.Series([1, 2], dtype="uint8")}), "u\n300", "'300' is not an integer from 0 to 255"),
        (pd.DataFrame({"o": pd.Series([1, 2], dtype=object)}), "o\n7", "'7' is not one of the values 1, 2"),
    ],
)
def test_values_that_a_column_does_not_have_are_refused(frame, text, message):
    with pytest.raises(whence.errors.InputError, match=message):
        whence.TableReader(frame).read(text)


def test_integers_beyond_floats_and_wrong_backgrounds():
    assert whence.TableReader(pd.DataFrame({"n": [1, 2]})).read("n\n9007199254740993").n.tolist() == [9007199254740993]
    with pytest.raises(whence.errors.InputError, match="is not an integer"):
        whence.TableReader(torch.tensor([[1, 2]]), ["a", "b"]).read("a,b\n1.5,2")
    for background in ({"a": [1]}, torch.zeros(3)):
        with pytest.raises(whence.errors.InputError, match="expected a data frame, or a tensor"):
            whence.TableReader(background, ["a"])
    with pytest.raises(whence.errors.InputError, match="two columns have the same name 'a'"):
        whence.TableReader(torch.zeros(2, 2), ["a", "a"])
