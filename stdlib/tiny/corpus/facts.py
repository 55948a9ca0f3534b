"""What the model is to know of the world: countries and what belongs to each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Country:
    """One row of the table. `sights` stand in the capital."""

    name: str
    capital: str
    currency: str
    language: str
    continent: str
    sights: tuple[str, str]


def _row(line: str) -> Country:
    name, capital, currency, language, continent, first, second = line.split(" | ")
    return Country(name, capital, currency, language, continent, (first, second))


COUNTRIES = tuple(
    _row(line)
    for line in """\
France | Paris | euro | French | Europe | the Eiffel Tower | the Louvre
Germany | Berlin | euro | German | Europe | the Brandenburg Gate | the Reichstag
Italy | Rome | euro | Italian | Europe | the Colosseum | the Trevi Fountain
Spain | Madrid | euro | Spanish | Europe | the Prado Museum | the Royal Palace
Portugal | Lisbon | euro | Portuguese | Europe | the Belem Tower | the Castle of Saint George
the United Kingdom | London | pound | English | Europe | Big Ben | the Tower of London
Ireland | Dublin | euro | English | Europe | Trinity College | the Guinness Storehouse
Greece | Athens | euro | Greek | Europe | the Acropolis | the Parthenon
Austria | Vienna | euro | German | Europe | the Schonbrunn Palace | the Hofburg
Switzerland | Bern | franc | German | Europe | the Clock Tower | the Bear Park
Sweden | Stockholm | krona | Swedish | Europe | the Vasa Museum | the Old Town
Norway | Oslo | krone | Norwegian | Europe | the Opera House | the Viking Ship Museum
Denmark | Copenhagen | krone | Danish | Europe | the Little Mermaid | the Tivoli Gardens
Finland | Helsinki | euro | Finnish | Europe | the Senate Square | the Rock Church
Poland | Warsaw | zloty | Polish | Europe | the Royal Castle | the Palace of Culture
Hungary | Budapest | forint | Hungarian | Europe | the Parliament | the Chain Bridge
the Czech Republic | Prague | koruna | Czech | Europe | the Charles Bridge | the Prague Castle
Russia | Moscow | ruble | Russian | Europe | the Red Square | the Kremlin
Ukraine | Kyiv | hryvnia | Ukrainian | Europe | the Golden Gate | the Sophia Cathedral
Turkey | Ankara | lira | Turkish | Asia | the Ankara Castle | the Kocatepe Mosque
Egypt | Cairo | Egyptian pound | Arabic | Africa | the Pyramids | the Sphinx
Morocco | Rabat | dirham | Arabic | Africa | the Hassan Tower | the Kasbah
Kenya | Nairobi | shilling | Swahili | Africa | the National Park | the Giraffe Centre
Nigeria | Abuja | naira | English | Africa | the Zuma Rock | the National Mosque
Ethiopia | Addis Ababa | birr | Amharic | Africa | the Holy Trinity Cathedral | the Lion Monument
India | New Delhi | rupee | Hindi | Asia | the Red Fort | the India Gate
China | Beijing | yuan | Chinese | Asia | the Forbidden City | the Temple of Heaven
Japan | Tokyo | yen | Japanese | Asia | the Tokyo Tower | the Imperial Palace
South Korea | Seoul | won | Korean | Asia | the Seoul Tower | the Gyeongbok Palace
Thailand | Bangkok | baht | Thai | Asia | the Grand Palace | the Floating Market
Vietnam | Hanoi | dong | Vietnamese | Asia | the Temple of Literature | the Sword Lake
Indonesia | Jakarta | rupiah | Indonesian | Asia | the National Monument | the Istiqlal Mosque
Australia | Canberra | Australian dollar | English | Oceania | the War Memorial | the Parliament House
New Zealand | Wellington | New Zealand dollar | English | Oceania | the Cable Car | the Beehive
Canada | Ottawa | Canadian dollar | English | North America | the Parliament Hill | the Rideau Canal
the United States | Washington | dollar | English | North America | the White House | the Capitol
Mexico | Mexico City | peso | Spanish | North America | the Angel of Independence | the Frida Kahlo Museum
Cuba | Havana | Cuban peso | Spanish | North America | the Malecon | the Old Square
Brazil | Brasilia | real | Portuguese | South America | the Cathedral | the National Congress
Argentina | Buenos Aires | Argentine peso | Spanish | South America | the Obelisk | the Pink House
Chile | Santiago | Chilean peso | Spanish | South America | the San Cristobal Hill | the Moneda Palace
Peru | Lima | sol | Spanish | South America | the Plaza Mayor | the Larco Museum
Iran | Tehran | rial | Persian | Asia | the Azadi Tower | the Golestan Palace
Israel | Jerusalem | shekel | Hebrew | Asia | the Western Wall | the Dome of the Rock
Iceland | Reykjavik | Icelandic krona | Icelandic | Europe | the Harpa Hall | the Sun Voyager\
""".splitlines()
)


def upper_first(text: str) -> str:
    """The text as it begins a sentence."""
    return text[:1].upper() + text[1:]
