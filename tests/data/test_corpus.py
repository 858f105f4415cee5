from src.data.corpus import clean_wikitext


def test_wikitext_is_detokenized():
    raw = " The \" quick \" <unk> , ( 1 @,@ 000 @.@ 5 fox @-@ like ) did n't : it 's ; done ! \n = = = Life = = = \n"
    assert clean_wikitext(raw) == "The \"quick\" <unk>, (1,000.5 fox-like) didn't: it's; done!\n=== Life ===\n"
